"""Tells a video that was cut short by its own container: by bytes, which are exact where counts of frames are guesses.

FFmpeg ends a broken file as it ends a whole one, and the number of frames that OpenCV tells is, for most containers,
a duration times a rate: wrong for videos of varying rate, with longer sound, or cut by an edit list.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML_HEADER = bytes.fromhex("1a45dfa3")
_MOST_PARTS = 1 << 16  # a fragmented video has two for each second or so


def missing_bytes(video: Path) -> int:
    """Return how many bytes its outermost parts say are missing at a video's end.

    Knows AVI, MP4 and MOV, Matroska and WebM, ASF (wmv). 0 for others (MPEG streams say no length), for what is
    written as it comes (live Matroska), and for what cannot be understood.

    Raises:
        OSError: it cannot be read.
    """
    size = video.stat().st_size
    with video.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            ends = _riff(file)
        elif head == _ASF_HEADER:
            ends = _asf(file)
        elif head[:4] == _EBML_HEADER:
            ends = _matroska(file)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            ends = _boxes(file)
        else:
            return 0
        for _, end in zip(range(_MOST_PARTS), ends, strict=False):
            if end > size:
                return end - size
    return 0


def _riff(file: BinaryIO) -> Iterator[int]:
    """Yield where each RIFF chunk ends; videos over 1 GB have several."""
    at = 0
    while len(head := _read(file, at, 8)) == 8 and head[:4] == b"RIFF":
        at += 8 + int.from_bytes(head[4:], "little")
        yield at


def _asf(file: BinaryIO) -> Iterator[int]:
    """Yield where each object ends: header, data, indices."""
    at = 0
    while len(head := _read(file, at, 24)) == 24 and (length := int.from_bytes(head[16:], "little")) >= 24:
        at += length
        yield at


def _boxes(file: BinaryIO) -> Iterator[int]:
    """Yield where each box of the ISO base media format ends; one of length 0 goes to the end, wherever that is."""
    at = 0
    while len(head := _read(file, at, 16)) >= 8 and head[4:8].isalnum():
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:
            return
        at += length
        yield at


def _matroska(file: BinaryIO) -> Iterator[int]:
    """Yield where the EBML header ends and where the segment does, unless its length is left open."""
    at = 0
    for _ in range(2):
        head = _read(file, at, 12)  # an element's id of four bytes, and its length in one to eight
        if len(head) < 5 or not head[4]:
            return
        width = 9 - head[4].bit_length()
        marked = int.from_bytes(head[4 : 4 + width], "big")
        length = marked & ((1 << 7 * width) - 1)
        if len(head) < 4 + width or length == (1 << 7 * width) - 1:
            return
        at += 4 + width + length
        yield at


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at, os.SEEK_SET)
    return file.read(count)
