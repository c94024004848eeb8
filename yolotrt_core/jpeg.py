"""Reads the size of a JPEG file without decoding it (ITU-T T.81, B)."""

from __future__ import annotations

_START, _END = b"\xff\xd8", b"\xff\xd9"
_BASELINE = 0xC0  # the one frame header that decoding hardware takes
_SCAN, _EXIF = 0xDA, 0xE1
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def upright_size(data: memoryview) -> tuple[int, int] | None:
    """Return the height and width of a plain JPEG file in pixels.

    Returns:
        None for anything but a complete 8-bit baseline JPEG of one or three components that no EXIF block may turn.
    """
    if bytes(data[:2]) != _START or bytes(data[-2:]) != _END:
        return None
    at, turned = 2, False
    size: tuple[int, int] | None = None
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _BASELINE:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3) and height and width
            size = (height, width) if plain else None
        if marker == _SCAN:
            return None if turned else size
        length = int.from_bytes(data[at + 2 : at + 4])
        turned = turned or (marker == _EXIF and _turns(data[at : at + 2 + length]))
        at += 2 + length
    return None


def _turns(segment: memoryview) -> bool:
    """Say whether an EXIF block holds an orientation tag, in either byte order; a chance match costs speed only."""
    block = bytes(segment)
    return b"\x01\x12\x00\x03" in block or b"\x12\x01\x03\x00" in block
