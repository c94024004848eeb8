"""JPEG files without their end: used if all pixels are there, as the decoded whole file proves, else refused."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.console import notices
from yolotrt_core.errors import UsageError
from yolotrt_core.media import images, jpeg_end

_KINDS: dict[str, list[int]] = {
    "baseline": [],
    "optimized": [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart": [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    "restart each": [cv2.IMWRITE_JPEG_RST_INTERVAL, 1],
    "no subsampling": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    "rst 444": [
        cv2.IMWRITE_JPEG_RST_INTERVAL, 5, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
    "grey": [],
}  # fmt: skip


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _encoded(kind: str, image: np.ndarray, quality: int = 90) -> bytes:
    image = image[:, :, 1] if kind == "grey" else image
    good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, *_KINDS[kind]])
    assert good
    return data.tobytes()


@pytest.fixture(autouse=True)
def _no_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_given", set())


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("size", [(61, 83), (64, 96)])
def test_a_file_is_used_if_and_only_if_no_pixel_is_missing(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for quality in (50, 95):
        data = _encoded(kind, _image(*size, seed=quality), quality)
        whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        header = data.index(b"\xff\xda")
        cuts = [*range(1, 40), *random.Random(0).sample(range(40, len(data) - header), 15), len(data) // 2]
        refused = 0
        for cut in cuts:
            path.write_bytes(data[:-cut])
            found = images.attempt(path)
            if isinstance(found, UsageError):
                assert cut > 2, found
                assert "it is truncated" in str(found)
                refused += 1
            else:
                np.testing.assert_array_equal(found, whole, err_msg=f"{cut} bytes cut")
        assert refused >= len(cuts) - 5  # the last byte may be without meaning, and the last restart marker's


def test_the_missing_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    data = _encoded("no subsampling", _image(160, 48))
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    path.write_bytes(data[: len(data) // 2])
    half = cv2.imdecode(np.frombuffer(data[: len(data) // 2] + b"\xff\xd9", np.uint8), cv2.IMREAD_COLOR)
    first = int(np.flatnonzero((half != whole).any(axis=(1, 2)))[0])
    with pytest.raises(UsageError, match=rf"the rows from {first} on are missing"):
        images.read(path)


def test_the_end_is_added_once_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.jpg"
    data = _encoded("baseline", _image(40, 56))
    path.write_bytes(data[:-2])
    for _ in range(2):
        np.testing.assert_array_equal(images.read(path), cv2.imdecode(np.frombuffer(data, np.uint8), 1))
    assert [r.message for r in caplog.records] == [f"`{path}` lacks its last bytes, but no pixels: it is used"]
    assert path.read_bytes() == data[:-2]


def test_data_after_the_end_is_no_truncation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _encoded("baseline", _image(40, 56))
    for number, more in enumerate((b"\0", b"\0" * 5000, data[:-2], data[: len(data) // 2], b"\xff\xd9\xff")):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data + more)
        np.testing.assert_array_equal(images.read(path), cv2.imdecode(np.frombuffer(data, np.uint8), 1))
    assert not caplog.records


def test_every_cut_and_every_changed_byte_of_the_header_is_survived() -> None:
    for kind in ("baseline", "progressive", "restart"):
        data = _encoded(kind, _image(20, 40))[:-2]
        header = data.index(b"\xff\xda") + 20
        for at in range(len(data)):
            if data[:at].startswith(b"\xff\xd8"):
                jpeg_end.complete(data[:at])
        for at in range(2, header):
            for value in (0, 0xFF, data[at] ^ 0x55):
                with contextlib.suppress(ValueError):
                    jpeg_end.complete(data[:at] + bytes([value]) + data[at + 1 :])
