"""The letterbox against closed forms, a brute-force bilinear and placements that upstream computed."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import pytest
from hypothesis import given, strategies as st

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import boxes_to_source, geometry, placement, preprocess
from yolotrt_core.types import Layout


class Placed(NamedTuple):
    source: tuple[int, int]
    target: tuple[int, int]
    placement: tuple[int, int, int, int]
    boxes: tuple[tuple[float, float, float, float], ...]


# Made with the PyPI package yolov5 7.0.14: where `letterbox(white, target, auto=False)` is white, as
# left, top, width, height; and `scale_boxes` of INPUT_BOXES.
INPUT_BOXES = np.array([[10, 20, 300, 400], [-5, 630, 700, 639.5]], np.float32)
UPSTREAM = (
    Placed((480, 640), (640, 640), (0, 80, 640, 480), ((10, 0, 300, 320), (0, 480, 640, 480))),
    Placed((426, 640), (640, 640), (0, 107, 640, 426), ((10, 0, 300, 293), (0, 426, 640, 426))),
    Placed((427, 640), (640, 640), (0, 106, 640, 427), ((10, 0, 300, 293.5), (0, 427, 640, 427))),
    Placed((333, 500), (640, 640), (0, 107, 640, 426), ((7.8125, 0, 234.375, 229), (0, 333, 500, 333))),
    Placed((500, 333), (640, 640), (107, 0, 426, 640), ((0, 15.625, 150.875, 312.5), (0, 492.1875, 333, 499.609375))),
    Placed((1080, 1920), (640, 640), (0, 140, 640, 360), ((30, 0, 900, 780), (0, 1080, 1920, 1080))),
    Placed((1080, 1920), (384, 640), (0, 12, 640, 360), ((30, 24, 900, 1080), (0, 1080, 1920, 1080))),
    Placed((640, 640), (640, 640), (0, 0, 640, 640), ((10, 20, 300, 400), (0, 630, 640, 639.5))),
    Placed(
        (641, 640),
        (640, 640),
        (0, 0, 639, 640),
        ((9.515625, 20.03125, 299.9687805175781, 400.625), (0, 630.984375, 640, 640.499267578125)),
    ),
    Placed(
        (639, 427),
        (640, 640),
        (106, 0, 428, 640),
        ((0, 19.96875, 193.53123474121094, 399.375), (0, 629.015625, 427, 638.500732421875)),
    ),
    Placed((1281, 961), (320, 416), (88, 0, 240, 320), ((0, 80.0625, 848.7874755859375, 1281), (0, 1281, 961, 1281))),
    Placed((7, 2000), (640, 640), (0, 319, 640, 2), ((31.25, 0, 937.5, 7), (0, 7, 2000, 7))),
    Placed((3, 2), (64, 64), (10, 0, 43, 64), ((0, 0.9375, 2, 3), (0, 3, 2, 3))),
    Placed(
        (375, 500),
        (1280, 1280),
        (0, 160, 1280, 960),
        ((3.90625, 0, 117.1875, 93.75), (0, 183.59375, 273.4375, 187.3046875)),
    ),
    Placed((1, 1), (32, 64), (16, 0, 32, 32), ((0, 0.625, 1, 1), (0, 1, 1, 1))),
)

sides = st.integers(1, 3000)
targets = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda t: (t[0] * 32, t[1] * 32))


def sample_image(height: int, width: int) -> np.ndarray:
    """A BGR image whose channels, rows and columns all differ, smooth enough to interpolate."""
    y, x = np.mgrid[:height, :width]
    channels = [
        np.sin(x / 7 + y / 11 + phase) * 60 + np.cos(x / 23 - y / 5 * (1 + phase / 9)) * 60 + 128 for phase in range(3)
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def bilinear(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize in float64, pixel centres at halves, edges repeated."""

    def weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(at).astype(int)
        return np.clip(low, 0, old - 1), np.clip(low + 1, 0, old - 1), at - low

    top, bottom, fy = weights(frame.shape[0], height)
    left, right, fx = weights(frame.shape[1], width)
    wide = frame.astype(np.float64)
    fx, fy = fx[:, None], fy[:, None, None]
    rows = wide[top] * (1 - fy) + wide[bottom] * fy
    return rows[:, left] * (1 - fx) + rows[:, right] * fx


@pytest.mark.parametrize("case", UPSTREAM, ids=lambda c: f"{c.source[1]}x{c.source[0]} in {c.target[1]}x{c.target[0]}")
def test_places_and_moves_back_as_upstream(case: Placed) -> None:
    placed = geometry(case.source, case.target)
    assert placement(placed) == case.placement
    white = np.full((*case.source, 3), 255, np.uint8)
    images, (same,) = preprocess([white], case.target)
    assert same == placed
    left, top, width, height = case.placement
    expected = np.full((3, *case.target), np.float32(114) / np.float32(255))
    expected[:, top : top + height, left : left + width] = 1
    np.testing.assert_array_equal(images[0], expected)
    given = INPUT_BOXES.copy()
    moved = boxes_to_source(given, placed)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(moved, np.array(case.boxes, np.float32))
    np.testing.assert_array_equal(given, INPUT_BOXES)


@given(height=sides, width=sides, target=targets)
def test_fills_one_side_and_centres_the_other(height: int, width: int, target: tuple[int, int]) -> None:
    placed = geometry((height, width), target)
    left, top, new_width, new_height = placement(placed)
    right, bottom = target[1] - left - new_width, target[0] - top - new_height
    assert min(left, top, right, bottom) >= 0
    assert 0 <= right - left <= 1
    assert 0 <= bottom - top <= 1
    assert new_width == target[1] or new_height == target[0]
    assert placed.scale == min(target[0] / height, target[1] / width)
    # The real-valued rest is halved exactly; whole pixels differ from it by the two roundings.
    assert placed.pad[0] == pytest.approx((target[1] - width * placed.scale) / 2)
    assert placed.pad[1] == pytest.approx((target[0] - height * placed.scale) / 2)
    assert abs(left - placed.pad[0]) <= 1
    assert abs(top - placed.pad[1]) <= 1


@given(height=sides, width=sides, target=targets)
def test_corners_of_the_image_come_back(height: int, width: int, target: tuple[int, int]) -> None:
    placed = geometry((height, width), target)
    (left, top), scale = placed.pad, placed.scale
    whole = np.array([[left, top, left + width * scale, top + height * scale]], np.float32)
    np.testing.assert_allclose(boxes_to_source(whole, placed), [[0, 0, width, height]], rtol=1e-5, atol=2e-4 / scale)


def test_clips_to_the_image_and_takes_no_boxes() -> None:
    placed = geometry((100, 200), (64, 64))
    moved = boxes_to_source(np.array([[-1e9, -1e9, 1e9, 1e9]], np.float32), placed)
    np.testing.assert_array_equal(moved, [[0, 0, 200, 100]])
    assert boxes_to_source(np.empty((0, 4), np.float32), placed).shape == (0, 4)


@pytest.mark.parametrize("shape", [(97, 211), (211, 97), (30, 20), (600, 450)])
def test_resizes_bilinearly(shape: tuple[int, int]) -> None:
    frame = sample_image(*shape)
    target = (160, 192)
    images, (placed,) = preprocess([frame], target)
    left, top, width, height = placement(placed)
    inside = images[0, :, top : top + height, left : left + width]
    expected = bilinear(frame, width, height)[:, :, ::-1].transpose(2, 0, 1)
    # OpenCV interpolates with 11-bit weights and rounds to bytes.
    assert np.abs(inside * 255 - expected).max() <= 1


def test_values_are_byte_over_255_in_rgb() -> None:
    frame = sample_image(64, 96)
    frame[0, :, :] = np.arange(96)[:, None]
    frame[1, :, :] = np.arange(96, 192)[:, None]
    frame[2, :64, :] = np.arange(192, 256)[:, None]
    images, _ = preprocess([frame], (64, 96))
    assert images.dtype == np.float32
    for channel in range(3):
        np.testing.assert_array_equal(images[0, channel], frame[:, :, 2 - channel].astype(np.float32) / np.float32(255))


def test_a_batch_of_different_sizes_is_each_alone() -> None:
    frames = [sample_image(64, 96), sample_image(33, 200), sample_image(200, 33), sample_image(128, 96)]
    images, geometries = preprocess(frames, (128, 96))
    for frame, image, placed in zip(frames, images, geometries, strict=True):
        alone, (only,) = preprocess([frame], (128, 96))
        np.testing.assert_array_equal(image, alone[0])
        assert placed == only


def test_fills_the_given_array_wherever_it_lies() -> None:
    room = np.full((4, 3, 64, 96), np.nan, np.float32)
    frames = [sample_image(30, 50), sample_image(50, 30)]
    images, _ = preprocess(frames, (64, 96), out=room[1:3])
    assert images.base is room
    np.testing.assert_array_equal(room[1:3], preprocess(frames, (64, 96))[0])
    assert np.isnan(room[[0, 3]]).all()


def test_takes_views_that_do_not_lie_in_one_piece() -> None:
    frame = sample_image(90, 120)
    for view in (frame[::2, ::3], frame[:, ::-1], frame[:, :, ::-1], frame.transpose(1, 0, 2)):
        np.testing.assert_array_equal(preprocess([view], (64, 64))[0], preprocess([view.copy()], (64, 64))[0])


@pytest.mark.parametrize("target", [(128, 96), (32, 160)])
def test_channels_last_is_the_same_image_in_another_order(target: tuple[int, int]) -> None:
    frames = [sample_image(64, 96), sample_image(33, 200)[:, ::-1], sample_image(200, 33), sample_image(*target)]
    planar, placed = preprocess(frames, target)
    last, same = preprocess(frames, target, layout="nhwc")
    assert last.shape == (4, *target, 3)
    assert last.flags.c_contiguous
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), planar)
    assert same == placed
    room = np.full((6, *target, 3), np.nan, np.float32)
    preprocess(frames, target, room[1:5], "nhwc")
    np.testing.assert_array_equal(room[1:5], last)
    assert np.isnan(room[[0, 5]]).all()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "no rows", "no columns"],
)
def test_refuses_what_is_no_frame(frame: np.ndarray) -> None:
    with pytest.raises(UsageError):
        preprocess([frame], (64, 64))


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    # Upstream's rule: half of what is too much, rounded down, comes before the square.
    [((5, 8), (0, 5), (1, 6)), ((9, 4), (2, 6), (0, 4)), ((6, 6), (0, 6), (0, 6)), ((1, 40), (0, 1), (19, 20))],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_crop_is_the_central_square_without_padding(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], layout: Layout
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    square = frame[slice(*rows), slice(*columns)]
    expected = cv2.resize(square, (32, 32), interpolation=cv2.INTER_LINEAR)[..., ::-1].astype(np.float32) / 255
    images, _ = preprocess([frame], (32, 32), layout=layout, fit="crop")
    found = images[0] if layout == "nhwc" else images[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(found, expected)
