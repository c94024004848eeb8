"""Images with fewer bits per value than their files have: said, and scaled on request."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.calibration.images import Batches, CalibrationData, choose
from yolotrt_core.console import notices
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.media import images
from yolotrt_core.media.decode_pool import ImageProcesses


@pytest.fixture(autouse=True)
def _no_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_given", set())


def _write(path: Path, bits: int, channels: int = 3) -> np.ndarray:
    """Write an 8-bit image as one of so many bits, the rest zero, and return it."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 16, 3) if channels == 3 else (12, 16), dtype=np.uint8)
    image[0, 0] = 255
    assert cv2.imwrite(str(path), image.astype(np.uint16) << bits - 8)
    return image if channels == 3 else np.dstack([image] * 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_values_are_those_of_the_8_bit_image(tmp_path: Path, suffix: str, channels: int) -> None:
    for bits in (9, 12, 14, 16):
        path = tmp_path / f"{bits}{suffix}"
        image = _write(path, bits, channels)
        found = images.read(path, depth=bits)
        assert np.abs(found.astype(int) - image).max() <= (bits == 16)  # OpenCV rounds 16 bits of TIFF
    np.testing.assert_array_equal(found, cv2.imread(str(path)))  # as upstream reads it


def test_values_above_the_range_are_white_and_8_bit_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    _write(path, 12)
    assert images.read(path, depth=10).max() == 255
    assert (images.read(path, depth=10)[cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 1023] == 255).all()
    _write(path, 8)
    cv2.imwrite(str(path), image := np.full((3, 4, 3), 9, np.uint8))
    np.testing.assert_array_equal(images.read(path, depth=12), image)


def test_the_maximum_in_the_header_of_a_pgm_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    (tmp_path / "x.pgm").write_bytes(b"P5 4 3 4095\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(images.read(tmp_path / "x.pgm", depth=12)[:, :, 0], values >> 4)
    images.read(tmp_path / "x.pgm")
    assert "`--image-bits 12`" in caplog.records[-1].message


def test_the_warning_names_one_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.tif"):
        _write(tmp_path / name, 12)
    _write(tmp_path / "full.png", 16)
    for name in ("full.png", "a.png", "b.tif", "a.png"):
        images.read(tmp_path / name)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"`{tmp_path / 'a.png'}`" in record.message
    assert "at most 12 are used" in record.message
    images.read(tmp_path / "b.tif", depth=12)
    assert len(caplog.records) == 1


def test_processes_scale_and_warn_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [tmp_path / f"{number}.png" for number in range(30)]
    image, *_ = (_write(file, 12) for file in files)
    for depth in (16, 12):
        with ImageProcesses(2, 1 << 16, depth=depth) as processes:
            for found in processes.read(files):
                np.testing.assert_array_equal(found, image if depth == 12 else images.read(files[0]))
    assert len(caplog.records) == 1


def test_calibration_follows_and_its_key_changes(tmp_path: Path) -> None:
    image = _write(tmp_path / "a.png", 12)
    full, scaled = (choose(CalibrationData(tmp_path, bits=bits)) for bits in (16, 12))
    assert full.sha256 != scaled.sha256
    (batch,) = Batches(scaled, (32, 32))
    np.testing.assert_array_equal(batch, preprocess([image], (32, 32))[0])


def test_jpeg_2000_files_that_state_16_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, image = tmp_path / "x.jp2", np.repeat(np.arange(240, dtype=np.uint8)[None], 64, 0)
    assert cv2.imwrite(str(path), image.astype(np.uint16) << 4)
    found = images.read(path, depth=12)[:, :, 0]
    assert np.abs(found.astype(int) - image).max() <= 2  # compression
    images.read(path)
    assert "`--image-bits 12`" in caplog.records[-1].message
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 11  # it states 12 bits, for which OpenCV scales by itself
    path.write_bytes(data)
    np.testing.assert_array_equal(images.read(path, depth=12), cv2.imread(str(path)))
