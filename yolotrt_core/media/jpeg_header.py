"""Reads the size of a JPEG file without decoding it (ITU-T T.81, B)."""

from __future__ import annotations

_START, _END = b"\xff\xd8", b"\xff\xd9"
_BASELINE = 0xC0  # the one frame header that decoding hardware takes
_SCAN, _EXIF, _FILL = 0xDA, 0xE1, 0xFF
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Return the height and width of a plain JPEG file in pixels.

    Returns:
        None for anything but a complete 8-bit baseline JPEG of one or three components that no EXIF block may turn.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return None
    # Asked for every image on threads that decode, which one at a time may do: so few objects are made here.
    at, last = 2, len(data) - 9
    size: tuple[int, int] | None = None
    while at < last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SCAN:
            return size
        if marker == _FILL or marker in _WITHOUT_LENGTH:
            at += 1 if marker == _FILL else 2
            continue
        if marker == _BASELINE:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3) and height and width
            size = (height, width) if plain else None
        following = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == _EXIF and _turns(data[at:following]):
            return None
        at = following
    return None


def _turns(block: bytes) -> bool:
    """Say whether an EXIF block holds an orientation tag, in either byte order; a chance match costs speed only."""
    return b"\x01\x12\x00\x03" in block or b"\x12\x01\x03\x00" in block
