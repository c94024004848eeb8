"""The YOLOv5 training loss, written from its published description.

Sources:
    The documentation of ultralytics/yolov5 v7.0, "Architecture summary", sections on the box formula,
    building targets and the loss: anchors are matched by ratio, a target counts for its own cell and
    the two nearest, objectness is weighted per level by 4, 1, 0.4.
    Zheng et al., "Distance-IoU Loss" (AAAI 2020), for the complete IoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ANCHOR_RATIO = 4.0
LEVEL_BALANCE = (4.0, 1.0, 0.4)


@dataclass(frozen=True)
class Gains:
    """Weights of the three parts of the loss."""

    box: float = 0.05
    objectness: float = 0.7
    classes: float = 0.15


@dataclass(frozen=True)
class Assignment:
    """Which predictions of one level answer for which targets, one entry per pair.

    Attributes:
        image, anchor, row, column: int64 (K,), where in (B, na, ny, nx).
        target: int64 (K,), index of the target.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor


def assign(targets: Tensor, anchors: Tensor, grid: tuple[int, int]) -> Assignment:
    """Match targets with the predictions of one level.

    A target counts for every anchor whose width and height differ from its own by less than
    `ANCHOR_RATIO`, in its own cell and, inside the grid, in the neighbours on the sides that its
    centre is nearer to: their boxes can reach it, since a centre may lie half a cell outside.

    Args:
        targets: float (M, 6): image, class, then centre x, y, width, height in cells.
        anchors: float (na, 2), in cells. grid: (ny, nx).
    """
    ratio = targets[:, None, 4:6] / anchors[None]
    matched = torch.maximum(ratio, 1 / ratio).amax(2) < ANCHOR_RATIO
    target, anchor = matched.nonzero(as_tuple=True)
    center = targets[target, 2:4]
    cell = center.floor()
    toward = torch.where(center - cell < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(toward[:, 0])
    sideways, upright = torch.stack([toward[:, 0], zero], 1), torch.stack([zero, toward[:, 1]], 1)
    cells = torch.cat([cell, cell + sideways, cell + upright]).long()
    target, anchor = target.repeat(3), anchor.repeat(3)
    inside = ((cells >= 0) & (cells < torch.tensor([grid[1], grid[0]]))).all(1)
    target, anchor, cells = target[inside], anchor[inside], cells[inside]
    return Assignment(targets[target, 0].long(), anchor, cells[:, 1], cells[:, 0], target)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the complete IoU of boxes (K, 4), centre x, y, width, height; the same unit for both."""
    a_low, a_high = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    b_low, b_high = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(1)
    iou = shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)
    diagonal = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).square().sum(1)
    distance = (a[:, :2] - b[:, :2]).square().sum(1)
    aspect = (4 / math.pi**2) * (torch.atan2(a[:, 2], a[:, 3]) - torch.atan2(b[:, 2], b[:, 3])).square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return iou - distance / diagonal - weight * aspect


def detection_loss(
    raw: Sequence[Tensor], targets: Tensor, anchors: Tensor, strides: Sequence[int], gains: Gains | None = None
) -> Tensor:
    """Return the loss of a batch.

    Args:
        raw: per level (B, na, ny, nx, 5 + C), as the network gives in training.
        targets: float32 (M, 6): image, class, then centre x, y, width, height in input pixels.
        anchors: float32 (levels, na, 2), in cells of the level. strides: pixels per cell.
    """
    gains = gains or Gains()
    total = raw[0].new_zeros(())
    for level, (out, stride) in enumerate(zip(raw, strides, strict=True)):
        in_cells = targets.clone()
        in_cells[:, 2:] /= stride
        found = assign(in_cells, anchors[level], (out.shape[2], out.shape[3]))
        wanted = torch.zeros_like(out[..., 4])
        if len(found.target):
            chosen = out[found.image, found.anchor, found.row, found.column]
            half = chosen[:, :4].sigmoid()
            cell = torch.stack([found.column, found.row], 1)
            box = torch.cat(
                [half[:, :2] * 2 - 0.5 + cell, (half[:, 2:] * 2).square() * anchors[level][found.anchor]], 1
            )
            overlap = complete_iou(box, in_cells[found.target, 2:])
            total = total + gains.box * (1 - overlap).mean()
            # Where two targets want one prediction, the better fitting one sets its objectness.
            order = overlap.detach().argsort()
            place = (found.image[order], found.anchor[order], found.row[order], found.column[order])
            wanted[place] = overlap.detach()[order].clamp(min=0).to(wanted.dtype)
            labels = functional.one_hot(targets[found.target, 1].long(), out.shape[-1] - 5).to(out.dtype)
            total = total + gains.classes * functional.binary_cross_entropy_with_logits(chosen[:, 5:], labels)
        objectness = functional.binary_cross_entropy_with_logits(out[..., 4], wanted)
        total = total + gains.objectness * LEVEL_BALANCE[level] * objectness
    return total * raw[0].shape[0]
