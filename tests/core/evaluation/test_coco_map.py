"""mAP where it can be worked out by hand, and resampling against data sets that were really resampled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from arrays import detections
from yolotrt_core.console.progress import progress
from yolotrt_core.evaluation import coco_map
from yolotrt_core.evaluation.coco_map import Bootstrap, Scored, Truth, differences, intervals
from yolotrt_core.types import Detections

LABELS = ("cat", "dog", "cow")


def _truth(boxes: list[list[float]], classes: list[int], crowd: list[bool] | None = None) -> Truth:
    return Truth(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(classes, np.int64),
        np.array(crowd or [False] * len(classes), bool),
        100,
        100,
    )


def test_perfect_and_absent() -> None:
    truth = [_truth([[10, 10, 20, 20]], [0]), _truth([[50, 50, 10, 10]], [1])]
    found = [detections(([10, 10, 30, 30], 0.9, 0)), detections()]
    accuracy = Scored(truth, found, LABELS).accuracy()
    assert [(c.label, c.boxes, c.ap50, c.ap50_95) for c in accuracy.classes] == [("cat", 1, 1, 1), ("dog", 1, 0, 0)]
    assert (accuracy.map50, accuracy.map50_95) == (0.5, 0.5)


def test_a_false_positive_that_scores_higher_halves_precision() -> None:
    truth = [_truth([[10, 10, 20, 20]], [0])]
    found = [detections(([60, 60, 80, 80], 0.9, 0), ([10, 10, 30, 30], 0.8, 0))]
    assert Scored(truth, found, LABELS).accuracy().map50 == pytest.approx(0.5)


def test_an_overlap_of_three_quarters_passes_half_of_the_thresholds() -> None:
    """IoU 15/20 = 0.75 meets 0.50 to 0.75: six of ten thresholds."""
    truth = [_truth([[0, 0, 20, 20]], [0])]
    found = [detections(([0, 0, 20, 15], 0.9, 0))]
    accuracy = Scored(truth, found, LABELS).accuracy()
    assert accuracy.map50 == 1
    assert accuracy.map50_95 == pytest.approx(0.6)


def test_a_crowd_counts_neither_way() -> None:
    truth = [_truth([[0, 0, 20, 20], [40, 40, 50, 50]], [0, 0], [False, True])]
    found = [detections(([0, 0, 20, 20], 0.8, 0), ([45, 45, 85, 85], 0.9, 0))]
    accuracy = Scored(truth, found, LABELS).accuracy()
    assert accuracy.map50 == 1
    assert accuracy.classes[0].boxes == 1


def test_nothing_found_at_all() -> None:
    accuracy = Scored([_truth([[0, 0, 20, 20]], [2])], [detections()], LABELS).accuracy()
    assert (accuracy.map50, accuracy.map50_95) == (0, 0)


@pytest.fixture(scope="module")
def random_set() -> tuple[list[Truth], list[Detections]]:
    """Thirty images, boxes found with jitter, some missed, some made up."""
    random = np.random.default_rng(5)
    truth, found = [], []
    for _ in range(30):
        count = int(random.integers(0, 6))
        corners = random.random((count, 2)) * 60
        sizes = 10 + random.random((count, 2)) * 30
        classes = random.integers(0, 2, count)
        truth.append(_truth(np.hstack([corners, sizes]).tolist(), classes.tolist()))
        jitter = random.normal(0, 2, (count, 4))
        boxes = np.hstack([corners, corners + sizes]) + jitter
        rows = [(b.tolist(), float(random.random()), int(c)) for b, c in zip(boxes, classes, strict=True)]
        rows += [([1.0, 1.0, 30.0, 30.0], float(random.random()), int(random.integers(0, 2)))]
        found.append(detections(*sorted(rows, key=lambda r: -r[1])))
    return truth, found


def test_a_resample_is_the_data_set_of_those_images(random_set: tuple[list[Truth], list[Detections]]) -> None:
    truth, found = random_set
    scored = Scored(truth, found, LABELS)
    before = scored.accuracy()
    for drawn in Bootstrap(5, seed=3).draw(len(truth)):
        really = Scored([truth[i] for i in drawn], [found[i] for i in drawn], LABELS).accuracy()
        assert scored.resampled(drawn) == pytest.approx((really.map50, really.map50_95), abs=1e-9)
    assert scored.accuracy() == before


def test_intervals_hold_the_value_and_repeat(random_set: tuple[list[Truth], list[Detections]]) -> None:
    truth, found = random_set
    scored = Scored(truth, found, LABELS)
    first, again = (intervals(scored, Bootstrap(100, seed=1)) for _ in range(2))
    assert first == again
    for interval in first:
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low < interval.value < interval.high


def test_an_engine_against_itself_differs_by_nothing(random_set: tuple[list[Truth], list[Detections]]) -> None:
    truth, found = random_set
    one, same = Scored(truth, found, LABELS), Scored(truth, found, LABELS)
    for interval in differences(one, same, Bootstrap(100)):
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_a_clearly_worse_engine_is_significant(random_set: tuple[list[Truth], list[Detections]]) -> None:
    truth, found = random_set
    worse = [Detections(d.boxes + 12, d.scores, d.class_ids) for d in found]
    one, other = Scored(truth, found, LABELS), Scored(truth, worse, LABELS)
    _, difference = differences(one, other, Bootstrap(100))
    assert difference.high is not None
    assert difference.high < 0
    assert difference.excludes_zero


@pytest.mark.parametrize(("images", "resamples"), [(30, 0), (30, 1), (30, 99), (1, 200), (5, 200)])
def test_too_few_images_or_resamples_give_no_interval(
    random_set: tuple[list[Truth], list[Detections]], images: int, resamples: int
) -> None:
    truth, found = (part[:images] for part in random_set)
    worse = [Detections(d.boxes + 12, d.scores, d.class_ids) for d in found]
    one, other = Scored(truth, found, LABELS), Scored(truth, worse, LABELS)
    bootstrap = Bootstrap(resamples)
    for interval in (*intervals(one, bootstrap), *differences(one, other, bootstrap)):
        assert (interval.low, interval.high, interval.excludes_zero) == (None, None, None)
    assert intervals(one, bootstrap)[0].value == one.accuracy().map50
    assert bootstrap.shortfall(images)


def test_six_images_and_a_hundred_resamples_are_enough(random_set: tuple[list[Truth], list[Detections]]) -> None:
    truth, found = (part[:6] for part in random_set)
    bootstrap = Bootstrap(100)
    assert bootstrap.shortfall(6) is None
    assert intervals(Scored(truth, found, LABELS), bootstrap)[0].low is not None


def test_resamples_are_drawn_as_numpy_draws_them_all_at_once() -> None:
    drawn = np.array(list(Bootstrap(7, seed=3).draw(11)))
    assert np.array_equal(drawn, np.random.default_rng(3).integers(0, 11, (7, 11)))


def test_resamples_are_worked_out_once_and_are_those_of_each_alone(
    random_set: tuple[list[Truth], list[Detections]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what drawing anew for every interval gave, here by NumPy from each resample itself."""
    truth, found = random_set
    worse = [Detections(d.boxes + 2, d.scores, d.class_ids) for d in found]
    bootstrap = Bootstrap(100, seed=1)
    pair = [Scored(truth, boxes, LABELS) for boxes in (found, worse)]
    drawn = [np.array([s.resampled(images) for images in bootstrap.draw(len(truth))]) for s in pair]
    one, other = (Scored(truth, boxes, LABELS) for boxes in (found, worse))
    asked = []
    real = Scored.resampled
    monkeypatch.setattr(Scored, "resampled", lambda s, images: (asked.append(s), real(s, images))[1])
    made = [*intervals(one, bootstrap), *intervals(other, bootstrap), *differences(one, other, bootstrap)]
    assert len(asked) == 2 * bootstrap.resamples
    expected = np.percentile(np.hstack([*drawn, drawn[1] - drawn[0]]), (2.5, 97.5), axis=0)
    assert [(i.low, i.high) for i in made] == list(zip(*expected.tolist(), strict=True))
    again, _ = intervals(one, Bootstrap(100, seed=2))
    assert again != made[0]  # another seed is another draw


def test_a_long_resampling_shows_how_far_it_is(
    random_set: tuple[list[Truth], list[Detections]], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, found = random_set
    shown: list[tuple[str, Any]] = []

    @contextmanager
    def watched(text: str, total: float | None = None) -> Iterator[Any]:
        with progress(text, total) as bar:
            shown.append((text, total))
            yield bar

    monkeypatch.setattr(coco_map, "progress", watched)
    Scored(truth, found, LABELS).resamples(Bootstrap(5))
    assert shown == []
    monkeypatch.setattr(coco_map, "_BAR_AFTER_S", -1.0)
    Scored(truth, found, LABELS).resamples(Bootstrap(5))
    assert shown == [("resampling the images", 5)]
