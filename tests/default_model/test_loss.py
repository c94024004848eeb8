"""The training loss against its definition, one prediction at a time in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from loss import ANCHOR_RATIO, LEVEL_BALANCE, Gains, assign, complete_iou, detection_loss

Pairs = set[tuple[int, int, int, int, int]]


def random_targets(rng: np.random.Generator, count: int, images: int, side: float) -> torch.Tensor:
    """Targets in cells of a grid `side` cells wide, some against its very edges."""
    rows = np.empty((count, 6))
    rows[:, 0], rows[:, 1] = rng.integers(0, images, count), rng.integers(0, 3, count)
    rows[:, 2:4] = rng.uniform(0, side, (count, 2))
    rows[:2, 2:4] = [[0.2, side - 0.1], [side - 0.3, 0.1]]
    rows[:, 4:] = np.exp(rng.uniform(-1.5, 2, (count, 2)))
    return torch.tensor(rows)


def pairs_by_definition(targets: Any, anchors: Any, ny: int, nx: int) -> Pairs:
    """Ask of every target, anchor and cell whether the one answers for the other."""
    pairs = set()
    for t, (image, _, x, y, w, h) in enumerate(targets):
        for a, (aw, ah) in enumerate(anchors):
            if not all(1 / ANCHOR_RATIO < ratio < ANCHOR_RATIO for ratio in (w / aw, h / ah)):
                continue
            for row in range(ny):
                for column in range(nx):
                    # Distances from the cell's middle: inside the cell both are at most 0.5; of the
                    # neighbours sharing a side, the nearer has the centre less than one cell away.
                    dx, dy = abs(x - column - 0.5), abs(y - row - 0.5)
                    own = int(x) == column and int(y) == row
                    beside = int(y) == row and abs(int(x) - column) == 1 and dx <= 1
                    above = int(x) == column and abs(int(y) - row) == 1 and dy <= 1
                    if own or beside or above:
                        pairs.add((int(image), a, row, column, t))
    return pairs


@pytest.mark.parametrize("seed", range(8))
def test_assignment_is_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = random_targets(rng, 9, 3, 5.0)
    anchors = torch.tensor([[1.0, 1.5], [3.0, 1.0], [4.0, 4.0]], dtype=torch.float64)
    found = assign(targets, anchors, (5, 5))
    columns = (found.image, found.anchor, found.row, found.column, found.target)
    listed = list(zip(*(each.tolist() for each in columns), strict=True))
    expected = pairs_by_definition(targets.tolist(), anchors.tolist(), 5, 5)
    assert len(listed) == len(set(listed)) > 9
    assert set(listed) == expected


def test_target_on_a_wide_grid_keeps_rows_and_columns_apart() -> None:
    targets = torch.tensor([[0, 1, 6.3, 0.4, 1, 1]], dtype=torch.float64)
    found = assign(targets, torch.ones(1, 2, dtype=torch.float64), (2, 7))
    # Right edge, upper half of the top row: its own cell and the left neighbour; above lies outside.
    assert sorted(zip(found.row.tolist(), found.column.tolist(), strict=True)) == [(0, 5), (0, 6)]


def ciou_by_definition(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the complete IoU and its weight alpha, from Zheng et al. (AAAI 2020), equations 8 to 11."""
    ax, ay, aw, ah = a
    bx, by, bw, bh = b
    wide = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    high = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    shared = max(wide, 0) * max(high, 0)
    iou = shared / (aw * ah + bw * bh - shared)
    around_w = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    around_h = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    alpha = v / (1 - iou + v) if v else 0.0
    return iou - ((ax - bx) ** 2 + (ay - by) ** 2) / (around_w**2 + around_h**2) - alpha * v, alpha


def test_complete_iou_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.hstack([rng.uniform(0, 6, (50, 2)), rng.uniform(0.3, 5, (50, 2))]) for _ in range(2))
    b[:5] = a[:5]
    expected = [ciou_by_definition(x, y)[0] for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(complete_iou(torch.tensor(a), torch.tensor(b)).tolist(), expected)
    assert expected[0] == pytest.approx(1)
    # Two unit squares three apart: no overlap, 9 over the enclosing 4 x 1 box's diagonal of 17, like shapes.
    apart = complete_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 1, 1]]))
    assert apart.item() == pytest.approx(-9 / 17)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(x: float, wanted: float) -> float:
    return -wanted * math.log(sigmoid(x)) - (1 - wanted) * math.log(1 - sigmoid(x))


class Definition:
    """The loss by loops. What the loss treats as constants (alpha, objectness wanted) is taken once."""

    def __init__(self, raw: Sequence[Any], targets: Any, anchors: Any, strides: Sequence[int]) -> None:
        self.strides, self.anchors = strides, anchors
        self.targets = [[[t[0], t[1], *(v / s for v in t[2:])] for t in targets] for s in strides]
        self.pairs = [
            sorted(pairs_by_definition(self.targets[k], anchors[k], *raw[k].shape[2:4])) for k in range(len(raw))
        ]
        self.alpha = [{p: self.overlap(raw, k, p)[1] for p in pairs} for k, pairs in enumerate(self.pairs)]
        self.wanted: list[dict[tuple[int, ...], float]] = [{} for _ in raw]
        for k, pairs in enumerate(self.pairs):
            for p in pairs:
                self.wanted[k][p[:4]] = max(self.wanted[k].get(p[:4], 0.0), self.overlap(raw, k, p)[0])

    def overlap(self, raw: Sequence[Any], level: int, pair: tuple[int, ...]) -> tuple[float, float, float]:
        image, anchor, row, column, target = pair
        x, y, w, h = (sigmoid(v) for v in raw[level][image, anchor, row, column, :4].tolist())
        aw, ah = self.anchors[level][anchor]
        box = (2 * x - 0.5 + column, 2 * y - 0.5 + row, (2 * w) ** 2 * aw, (2 * h) ** 2 * ah)
        wanted = self.targets[level][target][2:]
        ciou, alpha = ciou_by_definition(box, wanted)
        v = 4 / math.pi**2 * (math.atan(wanted[2] / wanted[3]) - math.atan(box[2] / box[3])) ** 2
        return ciou, alpha, v

    def __call__(self, raw: Sequence[Any], gains: Gains) -> float:
        total = 0.0
        for level, pairs in enumerate(self.pairs):
            boxes, classes, objectness = [], [], []
            for p in pairs:
                ciou, alpha, v = self.overlap(raw, level, p)
                boxes.append(1 - (ciou + alpha * v - self.alpha[level][p] * v))
                scores = raw[level][p[0], p[1], p[2], p[3], 5:].tolist()
                label = int(self.targets[level][p[4]][1])
                classes += [bce(s, float(c == label)) for c, s in enumerate(scores)]
            for place in np.ndindex(*raw[level].shape[:4]):
                objectness.append(bce(raw[level][place][4].item(), self.wanted[level].get(place, 0.0)))
            if pairs:
                total += gains.box * float(np.mean(boxes)) + gains.classes * float(np.mean(classes))
            total += gains.objectness * LEVEL_BALANCE[level] * float(np.mean(objectness))
        return total * raw[0].shape[0]


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strides = (8, 16)
    targets = random_targets(rng, 5, 2, 4.0)
    targets[:, 2:] *= 8
    anchors = torch.tensor([[[1.0, 1.5], [3.0, 1.0]], [[1.5, 1.5], [2.0, 4.0]]], dtype=torch.float64)
    raw = [torch.tensor(rng.normal(0, 1, (2, 2, n, n, 8)), requires_grad=True) for n in (4, 2)]
    gains = Gains(box=0.3, objectness=0.7, classes=0.5)
    loss = detection_loss(raw, targets, anchors, strides, gains)
    still = [each.detach().clone() for each in raw]
    definition = Definition(still, targets.tolist(), anchors.tolist(), strides)
    assert loss.item() == pytest.approx(definition(still, gains), rel=1e-12)
    loss.backward()
    places = [(k, (*p[:4], c)) for k, pairs in enumerate(definition.pairs) for p in pairs for c in range(0, 8, 2)]
    for k, place in [places[i] for i in rng.choice(len(places), 12, replace=False)]:
        slope, step = 0.0, 1e-5
        for sign in (1, -1):
            moved = [each.clone() for each in still]
            moved[k][place] += sign * step
            slope += sign * definition(moved, gains) / (2 * step)
        gradient = raw[k].grad
        assert gradient is not None
        assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_image_without_targets_only_teaches_absence() -> None:
    raw = [torch.zeros(1, 1, 2, 2, 7, requires_grad=True)]
    detection_loss(raw, torch.zeros(0, 6), torch.ones(1, 1, 2), (8,)).backward()
    gradient = raw[0].grad
    assert gradient is not None
    assert (gradient[..., 4] > 0).all() and not gradient[..., [0, 1, 2, 3, 5, 6]].any()
