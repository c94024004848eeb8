"""Suppression against the plain algorithm in float64, one box at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from yolotrt_core.inference.nms import APPROXIMATE_ERROR, nms


def brute_force(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray | None, iou: float) -> list[int]:
    """Greedy suppression as the definition has it."""
    left, top, right, bottom = boxes.astype(np.float64).T
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    alive = np.ones(len(boxes), dtype=bool)
    kept = []
    for best in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if not alive[best]:
            continue
        kept.append(best)
        width = np.minimum(right, right[best]) - np.maximum(left, left[best])
        height = np.minimum(bottom, bottom[best]) - np.maximum(top, top[best])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        union = area + area[best] - inter
        over = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0) > iou
        if groups is not None:
            over &= groups == groups[best]
        alive &= ~over
    return kept


def check(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray | None, iou: float) -> int:
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    kept = nms(boxes, scores, groups, iou)
    assert kept.tolist() == brute_force(boxes, scores, groups, iou)
    return len(kept)


def scene(random: np.random.Generator, boxes: int, objects: int, size: float, jitter: float) -> np.ndarray:
    """Boxes that crowd around a few objects, as a detector's do."""
    centres = random.uniform(0, 640, (objects, 2))
    sides = random.uniform(size / 4, size, (objects, 2))
    which = random.integers(0, objects, boxes)
    at = centres[which] + random.normal(0, jitter, (boxes, 2)) * sides[which]
    half = sides[which] * np.exp(random.normal(0, jitter, (boxes, 2))) / 2
    return np.concatenate((at - half, at + half), axis=1)


@pytest.mark.parametrize("groups", [1, 3, 80, 300])
@pytest.mark.parametrize(("boxes", "objects", "size"), [(50, 5, 200), (700, 30, 150), (3000, 200, 60), (3000, 4, 400)])
@pytest.mark.parametrize("iou", [0.45, 0.6])
def test_crowds(boxes: int, objects: int, size: float, groups: int, iou: float) -> None:
    random = np.random.default_rng([boxes, objects, groups])
    kept = check(
        scene(random, boxes, objects, size, 0.15),
        random.random(boxes),
        random.integers(0, groups, boxes) if groups > 1 else None,
        iou,
    )
    assert kept < boxes or groups == 300


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 139, 140, 141, 599, 600, 601, 1164, 1165, 2300])
def test_sizes_around_the_steps_of_the_work(count: int) -> None:
    random = np.random.default_rng(count)
    boxes = scene(random, count, max(1, count // 3), 40, 0.1)
    check(boxes, random.random(count), None, 0.5)
    check(boxes, random.random(count), random.integers(0, 7, count), 0.5)


def test_boxes_that_all_overlap_leave_one() -> None:
    boxes = np.tile(np.array([[10, 20, 50, 90]], np.float32), (20_000, 1))
    assert nms(boxes, np.linspace(0, 1, 20_000, dtype=np.float32), None, 0.5).tolist() == [19_999]


def test_boxes_that_never_overlap_all_stay_in_order() -> None:
    corner = np.stack(np.mgrid[:60, :60], axis=-1).reshape(-1, 2) * 10
    scores = np.random.default_rng(0).permutation(len(corner)).astype(np.float32)
    kept = nms(np.concatenate((corner, corner + 9), axis=1).astype(np.float32), scores, None, 0.0)
    np.testing.assert_array_equal(kept, np.argsort(-scores))


def test_a_chain_is_settled_link_by_link() -> None:
    # Each box overlaps the next by 2/3 and the one after by 1/4: every second one stays.
    left = np.arange(500, dtype=np.float32) * 2
    boxes = np.stack((left, np.zeros(500), left + 10, np.ones(500)), axis=1)
    scores = np.linspace(1, 0.5, 500)
    check(boxes, scores, None, 0.6)
    assert nms(boxes.astype(np.float32), scores.astype(np.float32), None, 0.6).tolist() == list(range(0, 500, 2))


# Whole coordinates make many pairs land on a threshold exactly, where a rounding decides.
whole_boxes = st.tuples(*[st.integers(0, 12)] * 4)
thresholds = st.sampled_from([0.0, 1 / 4, 1 / 3, 0.45, 0.5, 0.6, 2 / 3, 0.75, 1.0])


@given(data=st.data(), boxes=st.lists(whole_boxes, max_size=60), iou=thresholds, groups=st.integers(1, 3))
def test_ties_and_exact_thresholds(data: st.DataObject, boxes: list[tuple[int, ...]], iou: float, groups: int) -> None:
    count = len(boxes)
    scores = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    ids = data.draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count))
    check(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores) / 4, np.array(ids, np.intp), iou)


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200)
@given(
    boxes=st.lists(st.tuples(floats, floats, floats, floats), max_size=30),
    iou=st.one_of(thresholds, st.floats(1e-9, 1)),
)
def test_any_finite_corners(boxes: list[tuple[float, ...]], iou: float) -> None:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    corners = np.concatenate((corners, corners * np.float32(0.999)))  # something that overlaps
    check(corners, np.linspace(0.1, 0.9, len(corners)), None, iou)


@given(
    data=st.data(),
    scale=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e17, 1e30]),
    iou=st.sampled_from([0.0, 1e-6, 1e-3, 0.3, 0.6, 0.95, 1.0]),
)
def test_every_scale_of_coordinates(data: st.DataObject, scale: float, iou: float) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    boxes = scene(random, 150, 6, 300, 0.1) * scale
    check(boxes, random.random(150), None, iou)


def test_pairs_within_a_rounding_of_the_threshold() -> None:
    # The float32 comparison alone gets a part of these wrong.
    boxes, scores, groups = pairs_near(0.6, 4000, 1)
    kept = check(boxes, scores, groups, 0.6)
    assert 4500 < kept < 7500


def pairs_near(iou: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of boxes, each pair a group of its own, that overlap by `iou` give or take a few roundings."""
    random = np.random.default_rng(seed)
    start = random.uniform(100, 500, (count, 2)).astype(np.float32)
    side = random.uniform(5, 100, (count, 2)).astype(np.float32)
    shift = side[:, 0] * np.float32((1 - iou) / (1 + iou)) + random.integers(-3, 4, count) * np.spacing(start[:, 0])
    moved = start + np.stack((shift, np.zeros_like(shift)), axis=1).astype(np.float32)
    boxes = np.stack((np.concatenate((start, start + side), 1), np.concatenate((moved, moved + side), 1)), axis=1)
    return boxes.reshape(-1, 4), np.tile(np.float32([0.9, 0.5]), count), np.repeat(np.arange(count), 2)


class Approximate:
    """Suppression at thresholds that are off by most of what is allowed, in a direction of its own each time."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.thresholds: list[float] = []

    def __call__(self, boxes: np.ndarray, groups: np.ndarray, iou: float) -> np.ndarray:
        self.thresholds.append(iou)
        scores = np.arange(len(boxes), 0, -1)
        wrong = iou + self.random.uniform(-0.9, 0.9) * APPROXIMATE_ERROR
        return np.array(sorted(brute_force(boxes, scores, groups, wrong)))


@pytest.mark.parametrize("iou", [0.1, 0.45, 0.6])
def test_two_approximate_runs_that_agree_are_the_answer(iou: float) -> None:
    random = np.random.default_rng(7)
    boxes = scene(random, 800, 40, 100, 0.15).astype(np.float32)
    scores, groups = random.random(800).astype(np.float32), random.integers(0, 9, 800)
    approximate = Approximate(0)
    assert nms(boxes, scores, groups, iou, approximate).tolist() == brute_force(boxes, scores, groups, iou)
    assert sorted(approximate.thresholds) == [iou - APPROXIMATE_ERROR, iou + APPROXIMATE_ERROR]


def test_approximate_runs_never_change_the_answer() -> None:
    # Nearly every pair is one that an approximation may get wrong.
    for seed in range(20):
        boxes, scores, groups = pairs_near(0.6, 130, seed)
        approximate = Approximate(seed)
        expected = brute_force(boxes, scores, groups, 0.6)
        assert nms(boxes, scores, groups, 0.6, approximate).tolist() == expected
        boxes[:, 2:] += random_growth(seed, boxes)
        assert nms(boxes, scores, groups, 0.6, approximate).tolist() == brute_force(boxes, scores, groups, 0.6)


def random_growth(seed: int, boxes: np.ndarray) -> np.ndarray:
    """Move most pairs clear of the threshold, so that some of the approximate runs agree."""
    return np.random.default_rng(seed).uniform(0, 2, (len(boxes), 2)).astype(np.float32)


@pytest.mark.parametrize("spoil", ["no area", "negative", "huge", "tiny"])
def test_an_approximation_is_not_asked_about_odd_boxes(spoil: str) -> None:
    random = np.random.default_rng(8)
    boxes = scene(random, 300, 20, 100, 0.15).astype(np.float32)
    boxes[7] = {"no area": [5, 5, 5, 9], "negative": [9, 5, 5, 9], "huge": [0, 0, 1e20, 1], "tiny": [0, 0, 1e-20, 1]}[
        spoil
    ]
    scores = random.random(300).astype(np.float32)

    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("asked")

    assert nms(boxes, scores, None, 0.5, refuse).tolist() == brute_force(boxes, scores, None, 0.5)


def test_boxes_without_area_stay() -> None:
    boxes = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 10, 10], [9, 9, 1, 1], [9, 9, 1, 1], [2, 8, 8, 2]], np.float32)
    assert nms(boxes, np.ones(6, np.float32), None, 0.0).tolist() == list(range(6))


def test_minus_zero_scores_as_zero() -> None:
    boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]], np.float32)
    assert nms(boxes, np.array([-0.0, 0.5, 0.0], np.float32), None, 0.5).tolist() == [1, 0, 2]


def test_threads_do_not_disturb_one_another() -> None:
    random = np.random.default_rng(5)
    jobs = [
        (scene(random, 900, 40, 90, 0.1).astype(np.float32), random.random(900).astype(np.float32)) for _ in range(24)
    ]
    expected = [nms(boxes, scores, None, 0.5).tolist() for boxes, scores in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert [kept.tolist() for kept in pool.map(lambda job: nms(*job, None, 0.5), jobs)] == expected
