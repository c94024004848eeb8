"""Whether an image file is animated or has several pages, from its bytes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

_GIF = (b"GIF87a", b"GIF89a")
_PNG = b"\x89PNG\r\n\x1a\n"
_IMAGE, _EXTENSION = 0x2C, 0x21  # blocks of a GIF file
_ANIMATED = 2  # flag of WebP
_TIFF, _SUBFILE_TYPE = (b"II*\0", b"MM\0*"), 254


def is_animated(data: bytes) -> bool:
    """Return whether a file is an animated GIF, PNG, WebP or AVIF."""
    if data.startswith(_GIF):
        return _has_two_frames(data)
    if data.startswith(_PNG):  # APNG: this chunk is before the pixels
        return b"acTL" in data[: max(0, data.find(b"IDAT"))]
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return bool(data[20] & _ANIMATED) if len(data) > 20 else False
    return data[4:12] == b"ftypavis"


def has_pages(data: bytes) -> bool:
    """Return whether a TIFF file has a second image other than a smaller copy of the first (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    if data[:4] not in _TIFF:
        return False

    def number(at: int, count: int) -> int:
        return int.from_bytes(data[at : at + count], order)

    first = number(4, 4)
    second = number(first + 2 + 12 * number(first, 2), 4)
    entries = range(second + 2, second + 2 + 12 * number(second, 2), 12)
    return bool(second and entries) and not any(
        number(at, 2) == _SUBFILE_TYPE and number(at + 8, 4) & 1 for at in entries
    )


def is_animated_gif(path: Path) -> bool:
    """Return whether a file with the suffix of a GIF has more than one frame; False if it cannot be read."""
    if path.suffix.lower() != ".gif":
        return False
    try:
        status = path.stat()
        return _is_animated_gif(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return False


@functools.lru_cache(maxsize=1024)
def _is_animated_gif(path: Path, changed: int, size: int) -> bool:
    return is_animated(path.read_bytes())


def _has_two_frames(data: bytes) -> bool:
    """Walk the blocks of a GIF file up to the second image."""
    at, frames = 13, 0
    try:
        if data[10] & 0x80:  # colour table
            at += 3 << (data[10] & 7) + 1
        while data[at] in (_IMAGE, _EXTENSION):
            if data[at] == _IMAGE:
                frames += 1
                if frames == 2:
                    return True
                local = data[at + 9]
                at += 11 + ((3 << (local & 7) + 1) if local & 0x80 else 0)
            else:
                at += 2
            while data[at]:
                at += data[at] + 1
            at += 1
    except IndexError:  # truncated
        pass
    return False
