"""Size of a JPEG file from its header (ITU-T T.81, B)."""

from __future__ import annotations

_START, _END = b"\xff\xd8", b"\xff\xd9"
_BASELINE = 0xC0  # the only frame type that hardware decoders support
_SCAN, _EXIF, _FILL = 0xDA, 0xE1, 0xFF
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Return the height and width in pixels of a plain JPEG file.

    Returns:
        None unless it is a complete 8-bit baseline JPEG with one or three components and no EXIF orientation.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return None
    # Called for every image under the GIL: avoids creating objects.
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
    """Return whether an EXIF block has an orientation tag; a false positive only costs speed."""
    return b"\x01\x12\x00\x03" in block or b"\x12\x01\x03\x00" in block
