"""Networks of one and four channels: their input from images with and without alpha, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fake_stages import FakePostprocessor, FakeSession
from yolotrt_core.calibration.images import Batches, CalibrationData, choose
from yolotrt_core.detection.annotate import annotate
from yolotrt_core.errors import UsageError
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.media import images
from yolotrt_core.types import ChannelOrder, Detections, EngineSpec, Layout, ModelSpec, TensorSpec

SIZE = (32, 64)
ORDERS: tuple[ChannelOrder, ...] = ("rgba", "bgra", "argb", "abgr")


def noise(channels: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(channels).integers(0, 256, (*size, channels), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_grey_is_the_luma_of_the_colors(layout: Layout) -> None:
    frame = noise(3)
    found, _ = preprocess([frame], SIZE, layout=layout, order="grey")
    assert found.shape == ((1, 1, *SIZE) if layout == "nchw" else (1, *SIZE, 1))
    blue, green, red = np.moveaxis(frame.astype(np.float64), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    assert np.abs(found.reshape(SIZE) * 255 - luma).max() <= 0.51


def test_a_grey_image_keeps_its_values() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(4, axis=0).repeat(2, axis=1)
    found, _ = preprocess([np.dstack([values] * 3)], SIZE, order="grey")
    np.testing.assert_array_equal(found[0, 0], values / np.float32(255))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("order", ORDERS)
def test_alpha_is_a_channel_like_the_others(order: ChannelOrder, layout: Layout) -> None:
    frame = noise(4)
    found, _ = preprocess([frame, frame[..., :3]], SIZE, layout=layout, order=order)
    planar = found if layout == "nchw" else found.transpose(0, 3, 1, 2)
    for number, name in enumerate(order):
        plane = frame[..., "bgra".index(name)] / np.float32(255)
        np.testing.assert_array_equal(planar[0, number], plane)
        np.testing.assert_array_equal(planar[1, number], np.ones(SIZE, np.float32) if name == "a" else plane)


@pytest.mark.parametrize(("order", "channels"), [("grey", 3), ("rgba", 4), ("rgba", 3)])
def test_padding_is_the_same_in_all_channels(order: ChannelOrder, channels: int) -> None:
    frame = np.full((40, 40, channels), 200, np.uint8)
    found, (placed,) = preprocess([frame], SIZE, order=order)
    assert placed.pad == (16, 0)
    np.testing.assert_array_equal(found[0, :, :, :16], np.float32(114) / np.float32(255))
    np.testing.assert_array_equal(found[0, :, :, 48:], np.float32(114) / np.float32(255))
    inside = found[0, :3, :, 16:48] if order == "rgba" else found[0, :, :, 16:48]
    np.testing.assert_array_equal(inside, np.float32(200) / np.float32(255))


def test_resizing_is_that_of_each_channel_alone() -> None:
    frame = noise(4, (77, 90))
    found, _ = preprocess([frame], (64, 64), order="bgra")
    for channel in range(4):
        alone, _ = preprocess([np.dstack([frame[..., channel]] * 3)], (64, 64))
        np.testing.assert_array_equal(found[0, channel], alone[0, 0])


def test_frames_with_alpha_are_for_networks_with_alpha() -> None:
    for order in ("rgb", "grey"):
        with pytest.raises(UsageError, match=r"\(H, W, 3\) in BGR"):
            preprocess([noise(4)], SIZE, order=order)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Images with alpha of 8 and 16 bits and a palette, and others without."""
    bgra = noise(4)
    written = {
        "alpha.png": bgra,
        "deep.png": bgra.astype(np.uint16) * 257,
        "alpha.tif": bgra,
        "color.png": bgra[..., :3],
        "grey.png": bgra[..., 0],
        "photo.jpg": bgra[..., :3],
    }
    for name, pixels in written.items():
        assert cv2.imwrite(str(tmp_path / name), pixels)
    return {name: tmp_path / name for name in written}


def test_alpha_comes_from_the_file(files: dict[str, Path]) -> None:
    for name in ("alpha.png", "deep.png", "alpha.tif"):
        np.testing.assert_array_equal(images.read(files[name], alpha=True), noise(4))
        np.testing.assert_array_equal(images.read(files[name]), noise(4)[..., :3])
    for name in ("color.png", "grey.png", "photo.jpg"):
        np.testing.assert_array_equal(images.read(files[name], alpha=True), images.read(files[name]))


def spec(channels: int, order: ChannelOrder | None = None) -> EngineSpec:
    model = ModelSpec((TensorSpec("images", "float32", (2, channels, *SIZE)),), (), ("a",), (32,), "fake", order=order)
    return EngineSpec(model, "fp32", "fake", {})


class Recording(FakeSession):
    """Keeps what it was given."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(1.0, spec)
        self.given: list[NDArray[np.float32]] = []

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.given.append(images)
        return super().infer(images)


@pytest.mark.parametrize(("channels", "order"), [(1, "grey"), (4, "rgba"), (4, "argb")])
def test_a_detector_and_calibration_prepare_the_same(
    channels: int, order: ChannelOrder, files: dict[str, Path], tmp_path: Path
) -> None:
    session = Recording(spec(channels, order))
    holder: Any = SimpleNamespace(stage=FakePostprocessor())
    detector = Detector(session, holder, None)
    names = sorted(files)
    assert all(isinstance(one, Detections) for one in detector.detect_files([files[name] for name in names]))
    inputs = np.concatenate(session.given)
    assert inputs.shape == (6, channels, *SIZE)
    chosen = choose(CalibrationData(tmp_path, 6))
    batches = np.concatenate(list(Batches(chosen, SIZE, order=order)))
    for path, image in zip(chosen.files, batches, strict=True):
        np.testing.assert_array_equal(image, inputs[names.index(path.name)])
    if order != "grey":
        alpha = order.index("a")
        np.testing.assert_array_equal(inputs[names.index("alpha.png"), alpha], noise(4)[..., 3] / np.float32(255))
        assert (inputs[names.index("color.png"), alpha] == 1).all()


def test_the_usual_order_follows_from_the_number_of_channels() -> None:
    assert [spec(n).model.channel_order for n in (1, 3, 4)] == ["grey", "rgb", "rgba"]
    assert spec(4, "abgr").model.channel_order == "abgr"


def test_annotated_copies_have_no_alpha() -> None:
    boxes = np.array([[2, 2, 30, 30]], np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64))
    np.testing.assert_array_equal(annotate(noise(4), found, ("a",)), annotate(noise(4)[..., :3], found, ("a",)))
