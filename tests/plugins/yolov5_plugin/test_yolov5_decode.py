"""Decoding against the brute force beside it, on made-up rows of every kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from brute_force import candidates, kept
from hypothesis import given, settings, strategies as st

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import geometry
from yolotrt_core.types import Detections, ModelSpec, Selection, TensorSpec
from yolotrt_yolov5.stages import Yolov5Postprocessor

STAGE = Yolov5Postprocessor()
INPUT = (640, 640)


def spec_of(classes: int) -> ModelSpec:
    return ModelSpec(
        inputs=(TensorSpec("images", "float32", ("batch", 3, *INPUT)),),
        outputs=(TensorSpec("output0", "float32", ("batch", "rows", 5 + classes)),),
        labels=tuple(f"class {i}" for i in range(classes)),
        strides=(8, 16, 32),
    )


def decode(raw: np.ndarray, selection: Selection, sources: list[tuple[int, int]] | None = None) -> list[Detections]:
    sources = sources or [INPUT] * len(raw)
    placed = [geometry(source, INPUT) for source in sources]
    return STAGE.decode({"output0": raw}, spec_of(raw.shape[2] - 5), placed, selection, STAGE.Options())


def check(raw: np.ndarray, selection: Selection, sources: list[tuple[int, int]] | None = None) -> list[Detections]:
    """Decode, compare every image with the brute force, and return what was found."""
    sources = sources or [INPUT] * len(raw)
    found = decode(raw, selection, sources)
    assert len(found) == len(raw)
    for rows, (height, width), got in zip(raw, sources, found, strict=True):
        expected = kept(candidates(rows, selection), selection)
        shown = expected[: selection.max_det]
        assert got.truncated == len(expected) - len(shown)
        assert got.class_ids.tolist() == [f.class_id for f in shown]
        np.testing.assert_array_equal(got.scores, np.array([f.score for f in shown], np.float32))
        assert (got.boxes.dtype, got.scores.dtype, got.class_ids.dtype) == (np.float32, np.float32, np.int64)
        scale = min(INPUT[0] / height, INPUT[1] / width)
        pad = ((INPUT[1] - width * scale) / 2, (INPUT[0] - height * scale) / 2)
        corners = np.array([f.corners for f in shown], np.float64).reshape(-1, 4)
        moved = np.clip((corners - np.tile(pad, 2)) / scale, 0, (width, height, width, height))
        np.testing.assert_allclose(got.boxes, moved, rtol=1e-6, atol=2e-4 / scale)
    return found


def scene(random: np.random.Generator, images: int, rows: int, classes: int, objects: int) -> np.ndarray:
    """Rows that crowd around a few objects of a few classes each; many are background."""
    raw = np.empty((images, rows, 5 + classes), np.float32)
    for image in raw:
        centres, sides = random.uniform(0, 640, (objects, 2)), random.uniform(8, 300, (objects, 2))
        main = random.integers(0, classes, objects)
        which = random.integers(0, objects, rows)
        image[:, :2] = centres[which] + random.normal(0, 0.08, (rows, 2)) * sides[which]
        image[:, 2:4] = sides[which] * np.exp(random.normal(0, 0.15, (rows, 2)))
        image[:, 4] = random.random(rows) ** 4
        image[:, 5:] = random.random((rows, classes)) ** 12
        image[np.arange(rows), 5 + main[which]] = random.random(rows)
    return raw


@pytest.mark.parametrize("classes", [1, 2, 80, 300])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("conf", [0.001, 0.25])
def test_crowded_scenes(classes: int, multi_label: bool, agnostic: bool, conf: float) -> None:
    raw = scene(np.random.default_rng(classes), 2, 300 if classes < 300 else 100, classes, 25)
    selection = Selection(conf=conf, iou=0.5, multi_label=multi_label, agnostic=agnostic, max_det=10_000)
    found = check(raw, selection, [(480, 640), (1333, 750)])
    assert all(len(f) for f in found)


def test_each_image_of_a_batch_is_as_if_alone() -> None:
    sources = [(480, 640), (640, 480), (1080, 1920), (33, 20)]
    raw = scene(np.random.default_rng(0), 4, 400, 5, 20)
    together = check(raw, Selection(), sources)
    for index, source in enumerate(sources):
        (alone,) = decode(raw[index : index + 1], Selection(), [source])
        np.testing.assert_array_equal(alone.boxes, together[index].boxes)
        np.testing.assert_array_equal(alone.scores, together[index].scores)


def test_says_how_many_max_det_cut_off() -> None:
    raw = scene(np.random.default_rng(1), 1, 1000, 20, 100)
    base = Selection(conf=0.001, iou=0.6, multi_label=True, max_det=100_000)
    (everything,) = check(raw, base)
    assert everything.truncated == 0
    assert len(everything) > 500
    for most in (0, 1, 300, len(everything) - 1, len(everything)):
        (some,) = check(raw, dataclasses.replace(base, max_det=most))
        assert len(some) == most
        assert some.truncated == len(everything) - most
        np.testing.assert_array_equal(some.boxes, everything.boxes[:most])


def test_more_candidates_than_upstreams_cap_of_30000() -> None:
    # Boxes side by side: every class of every box is kept.
    raw = np.empty((1, 800, 5 + 50), np.float32)
    raw[0, :, :2] = np.stack(np.mgrid[:40, :20], axis=-1).reshape(-1, 2) * 16
    raw[0, :, 2:4] = 15
    raw[0, :, 4:] = np.random.default_rng(2).uniform(0.5, 1, (800, 51))
    (found,) = decode(raw, Selection(conf=0.001, iou=0.6, multi_label=True, max_det=1000))
    scores = (raw[0, :, 4:5] * raw[0, :, 5:]).ravel()
    assert found.truncated == scores.size - 1000 == 39_000
    np.testing.assert_array_equal(found.scores, np.sort(scores)[::-1][:1000])


def test_best_class_is_chosen_before_the_class_filter() -> None:
    raw = np.array([[[100, 100, 50, 50, 1, 0.9, 0.8, 0.1]]], np.float32)
    assert len(check(raw, Selection(classes=(1,)))[0]) == 0
    assert check(raw, Selection(classes=(1,), multi_label=True))[0].class_ids.tolist() == [1]
    assert check(raw, Selection(classes=(0, 2)))[0].class_ids.tolist() == [0]


def test_thresholds_are_exclusive_and_float32() -> None:
    conf = np.float32(0.3)
    raw = np.array(
        [[[100, 100, 50, 50, conf, 1], [300, 300, 50, 50, np.nextafter(conf, np.float32(1)), 1]]], np.float32
    )
    assert len(check(raw, Selection(conf=0.3))[0]) == 1
    # An IoU of exactly 1/2 does not suppress at 0.5: 10x10 boxes that share two thirds of their width.
    raw = np.array([[[15, 15, 12, 10, 1, 0.9], [19, 15, 12, 10, 1, 0.8]]], np.float32)
    assert len(check(raw, Selection(iou=0.5))[0]) == 2
    assert len(check(raw, Selection(iou=0.4999999))[0]) == 1


def test_objectness_alone_must_pass_too() -> None:
    raw = np.array([[[100, 100, 50, 50, 0.2, 3.0]]], np.float32)
    assert len(check(raw, Selection(conf=0.25))[0]) == 0


def test_equal_scores_keep_the_order_of_rows_and_classes() -> None:
    row = [50, 50, 20, 20, 1, 0.5, 0.5]
    raw = np.array([[[*row[:1], 400, *row[2:]], row, row]], np.float32)
    (found,) = check(raw, Selection(multi_label=True))
    assert found.class_ids.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(found.boxes[:, 1], [390, 390, 40, 40])
    (found,) = check(raw, Selection())
    assert found.class_ids.tolist() == [0, 0]


def test_a_better_class_suppresses_the_same_box_only_if_agnostic() -> None:
    raw = np.array([[[50, 50, 20, 20, 1, 0.5, 0.9, 0.7], [200, 50, 0, 20, 1, 0.5, 0.9, 0.7]]], np.float32)
    (found,) = check(raw, Selection(multi_label=True, agnostic=True))
    # The second box has no area, so its classes do not suppress one another.
    assert found.class_ids.tolist() == [1, 1, 2, 0]
    assert len(check(raw, Selection(multi_label=True))[0]) == 6
    assert len(check(raw, Selection(multi_label=True, agnostic=True, iou=1.0))[0]) == 6


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(8))
def test_what_is_not_finite_takes_out_only_itself(column: int, bad: float, multi_label: bool) -> None:
    good = [100, 100, 50, 50, 0.9, 0.6, 0.8, 0.7]
    raw = np.array([[good, good]], np.float32)
    raw[0, 0, 0] = 400
    raw[0, 0, column] = bad
    (found,) = check(raw, Selection(multi_label=multi_label))
    alone = 3 if multi_label else 1
    in_class = column - 5
    if in_class < 0:
        assert len(found) == alone
    elif multi_label:
        assert sorted(found.class_ids.tolist()) == sorted([0, 1, 2, *({0, 1, 2} - {in_class})])
    else:
        assert sorted(found.class_ids.tolist()) == sorted([1, 2 if in_class == 1 else 1])


def test_huge_boxes_that_overflow_go_and_large_ones_stay() -> None:
    raw = np.array([[[3e38, 50, 3e38, 20, 1, 0.9], [50, 50, 3e38, 3e38, 1, 0.9], [50, 50, 20, 20, 1, 0.8]]], np.float32)
    (found,) = check(raw, Selection())
    np.testing.assert_array_equal(found.boxes, [[0, 0, 640, 640], [40, 40, 60, 60]])


def test_negative_sizes_have_no_area() -> None:
    raw = np.array([[[50, 50, -20, -20, 1, 0.9], [50, 50, -20, -20, 1, 0.8], [50, 50, 20, 20, 1, 0.7]]], np.float32)
    assert len(check(raw, Selection())[0]) == 3


def test_no_rows_no_candidates_and_no_images() -> None:
    assert decode(np.empty((0, 10, 6), np.float32), Selection(), []) == []
    for raw in (np.empty((1, 0, 6), np.float32), np.zeros((1, 10, 85), np.float32)):
        (found,) = check(raw, Selection(multi_label=True))
        assert found.boxes.shape == (0, 4)
        assert found.truncated == 0


def test_float16_is_widened_before_any_comparison() -> None:
    raw = scene(np.random.default_rng(3), 1, 300, 5, 20).astype(np.float16)
    for conf in (0.001, 0.1, 0.25):  # none of them is a float16
        found = check(raw, Selection(conf=conf, multi_label=True))
        widened = decode(raw.astype(np.float32), Selection(conf=conf, multi_label=True))
        np.testing.assert_array_equal(found[0].boxes, widened[0].boxes)


def test_the_input_is_left_as_it_was() -> None:
    raw = scene(np.random.default_rng(4), 1, 200, 3, 10)
    before = raw.copy()
    raw.flags.writeable = False
    decode(raw, Selection(multi_label=True))
    np.testing.assert_array_equal(raw, before)


numbers = st.one_of(
    st.floats(width=32, allow_nan=True),
    st.floats(-1, 2, width=32),
    st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, 20.0, 24.0, 30.0, 1e-20]),
)


@settings(max_examples=300)
@given(
    data=st.data(),
    classes=st.integers(1, 4),
    multi_label=st.booleans(),
    agnostic=st.booleans(),
    conf=st.sampled_from([0.0, 0.001, 0.25, 0.5, 1.0]),
    iou=st.sampled_from([0.0, 1 / 3, 0.45, 0.6, 1.0]),
    max_det=st.sampled_from([1, 3, 300]),
)
def test_any_numbers_at_all(
    data: st.DataObject, classes: int, multi_label: bool, agnostic: bool, conf: float, iou: float, max_det: int
) -> None:
    rows = data.draw(st.lists(st.lists(numbers, min_size=5 + classes, max_size=5 + classes), max_size=14))
    wanted = data.draw(st.lists(st.integers(0, classes - 1), unique=True, max_size=2))
    raw = np.array(rows, np.float32).reshape(1, -1, 5 + classes)
    raw[:, ::2, 4] = np.abs(raw[:, ::2, 4]) + np.float32(0.5)
    selection = Selection(conf, iou, multi_label, agnostic, tuple(wanted), max_det)
    (found,) = decode(raw, selection)
    expected = kept(candidates(raw[0], selection), selection)
    assert found.truncated == max(0, len(expected) - max_det)
    assert found.class_ids.tolist() == [f.class_id for f in expected[:max_det]]
    np.testing.assert_array_equal(found.scores, np.array([f.score for f in expected[:max_det]], np.float32))
    assert np.isfinite(found.boxes).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([1, 2, 7, 80, 300]),
    multi_label=st.booleans(),
    agnostic=st.booleans(),
    conf=st.sampled_from([0.001, 0.05, 0.25]),
    iou=st.floats(0.05, 0.95),
)
def test_random_scenes(seed: int, classes: int, multi_label: bool, agnostic: bool, conf: float, iou: float) -> None:
    raw = scene(np.random.default_rng(seed), 1, 150, classes, 12)
    check(raw, Selection(conf, iou, multi_label, agnostic, (), 100_000), [(427, 640)])


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "found none"),
        ({"boxes": np.zeros((1, 10, 8), np.float32), "scores": np.zeros(1)}, "found `boxes`, `scores`"),
        ({"output0": np.zeros((10, 8), np.float32)}, r"found \(10, 8\)"),
        ({"output0": np.zeros((1, 10, 9), np.float32)}, r"3 classes .* 8\), found \(1, 10, 9\)"),
        ({"output0": np.zeros((1, 10, 8), np.float64)}, "found float64"),
        ({"output0": np.zeros((2, 10, 8), np.float32)}, "has 2 images, but the input had 1"),
    ],
    ids=["nothing", "other names", "rank", "width", "dtype", "images"],
)
def test_refuses_outputs_of_other_heads(raw: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        STAGE.decode(raw, spec_of(3), [geometry(INPUT, INPUT)], Selection(), STAGE.Options())


def test_refuses_a_model_without_classes() -> None:
    with pytest.raises(UsageError, match="at least one class"):
        decode(np.zeros((1, 1, 5), np.float32), Selection())


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (Selection(conf=1.5), "`conf` must be a number from 0 to 1, found 1.5"),
        (Selection(iou=-0.1), "`iou` must be a number from 0 to 1, found -0.1"),
        (Selection(conf=float("nan")), "`conf` .* found nan"),
        (Selection(max_det=-1), "`max_det` must be an integer of at least 0, found -1"),
    ],
)
def test_refuses_thresholds_out_of_range(selection: Selection, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        decode(np.zeros((1, 1, 6), np.float32), selection)


def test_the_stage_is_offered_and_has_a_device_program() -> None:
    from yolotrt_yolov5 import yolotrt_postprocessors

    stage, *_ = yolotrt_postprocessors()
    assert stage.name == "yolov5"
    assert stage.heads == {"yolov5"}
    program = Yolov5Postprocessor().device_program(spec_of(7))
    assert (program.output, program.classes) == ("output0", 7)
    assert "struct Head" in program.source
