"""The size of a JPEG file without decoding it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from yolotrt_core.media import jpeg_header


def encoded(height: int, width: int, *flags: int) -> bytes:
    rng = np.random.default_rng(height * width)
    image = cv2.resize(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), (width, height))
    good, data = cv2.imencode(".jpg", image, list(flags))
    assert good
    return data.tobytes()


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    return data[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


ORIENTED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


@pytest.mark.parametrize("size", [(1, 1), (20, 41), (480, 640), (600, 3)])
def test_size(size: tuple[int, int]) -> None:
    data = encoded(*size)
    assert jpeg_header.upright_size(data) == size
    assert jpeg_header.upright_size(with_segment(data, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0")) == size
    assert jpeg_header.upright_size(with_segment(data, 0xFE, b"\xff\xc0 a comment")) == size


def test_no_size_where_decoders_may_turn_it_or_stop() -> None:
    data = encoded(20, 40)
    for other in (
        b"",
        b"\xff",
        data[:-9],
        encoded(20, 40, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        data[2:],
        with_segment(data, 0xE1, ORIENTED),
        b"\xff\xd8\xff\xd9",
        data[: data.index(b"\xff\xda")] + b"\xff\xd9",
    ):
        assert jpeg_header.upright_size(other) is None


def test_every_cut_and_every_changed_byte_of_the_header_is_survived() -> None:
    data = encoded(20, 40)
    for at in range(len(data)):
        jpeg_header.upright_size(data[:at] + b"\xff\xd9")
    for at in range(2, 200):
        jpeg_header.upright_size(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
