"""Row layouts against a decoder written out as nested loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.errors import UsageError
from yolotrt_core.export.output_layout import Known, Order, Rows, Units, find_rows
from yolotrt_core.export.reference_input import reference_images

SIZE = (96, 160)
CLASSES = 2


def decoded(
    strides: tuple[int, ...], anchors: int, order: Order, units: Units, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return one random answer in the asked layout and in the project's, row by row as YOLOv5 defines them."""
    random = np.random.default_rng(seed)
    placed: dict[tuple[int, int, int, int], list[float]] = {}
    for stride in strides:
        for y, x, anchor in itertools.product(range(SIZE[0] // stride), range(SIZE[1] // stride), range(anchors)):
            place = random.random(2) * 2 - 0.5
            size = (random.random(2) * 2) ** 2 * stride
            centre = (place + np.array([x, y])) * stride
            placed[stride, y, x, anchor] = [*centre, *size, *random.random(1 + CLASSES)]
    ours = [placed[key] for key in sorted(placed, key=lambda k: (k[0], k[3], k[1], k[2]))]
    theirs = []
    for stride in strides:
        keys = [key for key in placed if key[0] == stride]
        keys.sort(key=lambda k: (k[3], k[1], k[2]) if order == "anchor" else (k[1], k[2], k[3]))
        theirs += [placed[key] for key in keys]
    answer = np.array([theirs], np.float32)
    if units == "normalised":
        answer[..., [0, 2]] /= SIZE[1]
        answer[..., [1, 3]] /= SIZE[0]
    return answer, np.array([ours], np.float32)


@pytest.mark.parametrize("order", ["anchor", "cell"])
@pytest.mark.parametrize("units", ["pixels", "normalised"])
@pytest.mark.parametrize(
    ("strides", "anchors"), [((8, 16, 32), 3), ((32, 16, 8), 3), ((16, 32), 3), ((4, 8, 16, 32), 1), ((8,), 2)]
)
def test_every_layout_is_found_and_brought_to_ours(
    order: Order, units: Units, strides: tuple[int, ...], anchors: int
) -> None:
    answer, ours = decoded(strides, anchors, order, units)
    found = find_rows(answer, SIZE)
    assert (found.strides, found.anchors, found.units) == (strides, anchors, units)
    if anchors > 1:  # with one anchor both orders are the same
        assert found.order == order
    np.testing.assert_allclose(found.to_project(answer, *SIZE), ours, rtol=1e-6, atol=1e-5)
    is_ours = strides == tuple(sorted(strides)) and (order == "anchor" or anchors == 1)
    assert (found.permutation(*SIZE) is None) == is_ours
    assert (found.scale(*SIZE) is None) == (units == "pixels")


def test_what_is_declared_must_hold() -> None:
    answer, _ = decoded((8, 16, 32), 3, "cell", "normalised")
    assert find_rows(answer, SIZE, Known((8, 16, 32), "cell", "normalised")) == find_rows(answer, SIZE)
    for known in (Known(order="anchor"), Known(units="pixels"), Known(strides=(32, 16, 8)), Known(strides=(7,))):
        with pytest.raises(UsageError, match="with"):
            find_rows(answer, SIZE, known)


def test_other_strides_can_be_declared() -> None:
    strides = (8, 32)  # with a level left out
    answer, ours = decoded(strides, 2, "cell", "pixels")
    with pytest.raises(UsageError, match="in any known order"):
        find_rows(answer, SIZE)
    found = find_rows(answer, SIZE, Known(strides=strides))
    np.testing.assert_allclose(found.to_project(answer, *SIZE), ours, rtol=1e-6)


def test_what_is_no_yolov5_output_is_refused() -> None:
    answer, _ = decoded((8, 16, 32), 3, "anchor", "pixels")
    shuffled = answer[:, np.random.default_rng(1).permutation(answer.shape[1])]
    corners = answer.copy()
    corners[..., :2] -= corners[..., 2:4] / 2  # x1 y1 instead of the centre
    raw = np.random.default_rng(0).normal(0, 3, answer.shape).astype(np.float32)  # before the decoding
    for wrong in (shuffled, corners, raw, answer[:, :-1]):
        with pytest.raises(UsageError, match="do not match YOLOv5 boxes"):
            find_rows(wrong, SIZE)
    with pytest.raises(UsageError, match="expected a YOLOv5 output"):
        find_rows(answer.transpose(0, 2, 1)[..., :5], SIZE)
    answer[0, 3, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        find_rows(answer, SIZE)


def test_rounded_answers_need_slack() -> None:
    answer, ours = decoded((8, 16, 32), 3, "cell", "normalised")
    rounded = np.round(answer * 255) / np.float32(255)  # as a uint8 output: steps of 0.6 pixels
    with pytest.raises(UsageError):
        find_rows(rounded, SIZE)
    found = find_rows(rounded, SIZE, slack=1.0)
    np.testing.assert_allclose(found.to_project(rounded, *SIZE)[..., :4], ours[..., :4], atol=0.33)


def test_permutation_is_one() -> None:
    rows = Rows((8, 16, 32), 3, "cell", "pixels")
    moved = rows.permutation(*SIZE)
    assert moved is not None
    np.testing.assert_array_equal(np.sort(moved), np.arange(len(moved)))


def test_reference_images_are_always_the_same_and_never_alike() -> None:
    images = reference_images(3, 96, 160)
    assert (images.shape, images.dtype) == ((3, 3, 96, 160), np.float32)
    assert 0 <= images.min() < 0.3
    assert 0.7 < images.max() <= 1
    np.testing.assert_array_equal(images, reference_images(3, 96, 160))
    for a, b in itertools.combinations([*images.reshape(9, -1)], 2):
        assert np.abs(a - b).mean() > 0.05


@pytest.mark.parametrize("columns", [6, 7, 85])
def test_as_many_rows_as_nms_keeps_are_finished_detections(columns: int) -> None:
    output = np.random.default_rng(0).uniform(0, 1, (1, 300, columns)) * 640
    with pytest.raises(UsageError, match="the 300 output rows") as caught:
        find_rows(output, (640, 640))
    assert "without NMS" in str(caught.value.hint)
