"""Detection of truncated videos by the sizes in their containers.

FFmpeg reports no error for a truncated file, and its number of frames is an estimate for most containers, wrong for
variable frame rates, longer audio or edit lists.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML_HEADER = bytes.fromhex("1a45dfa3")
_UNKNOWN_SIZE = b"\xff\xff\xff\xff"  # of an AVI file that was written to a pipe
_PACKET_START = b"G"  # of MPEG transport streams, 0x47
_MAX_PARTS = 1 << 16  # a fragmented video has about two per second
# Element ids by RFC 9559: of the segment, and of what it and its clusters contain.
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_OUTERMOST = frozenset({0x1A45DFA3, _SEGMENT})  # the former is the EBML header
_ANYWHERE = frozenset({0xEC, 0xBF})  # void, CRC-32
_IN_SEGMENT = _ANYWHERE | {_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469}
_BLOCKS = frozenset({0xA3, 0xA0})
_IN_CLUSTER = _ANYWHERE | _BLOCKS | {0xE7, 0xAB, 0xA7, 0xAF, 0x5854}


def missing_bytes(video: Path) -> int:
    """Return the number of bytes missing at a video's end, by the sizes of its outermost parts.

    Supports AVI, MP4, MOV, Matroska, WebM and ASF (wmv); of an MPEG transport stream only its last packet has a known
    size. 0 for other or invalid files, and for streams without a size (MPEG-1, live Matroska).

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
            return _transport_stream(file, size)
        for _, end in zip(range(_MAX_PARTS), ends, strict=False):
            if end > size:
                return end - size
    return 0


def matroska_blocks(video: Path) -> tuple[int, int | None]:
    """Return the number of blocks in a Matroska or WebM file, and the position of its first invalid element or None.

    FFmpeg continues behind an invalid block or element at the next cluster that it finds, without an error. A block has
    one packet, or several of sound. 0 blocks for other files.

    Raises:
        OSError: it cannot be read.
    """
    blocks = 0
    with video.open("rb") as file:
        size = video.stat().st_size
        if _read(file, 0, 4) != _EBML_HEADER:
            return 0, None
        at = end_of_segment = end_of_cluster = 0
        while at < size:
            begin = at
            name, at, length = _element(file, at)
            end = size if length is None else at + length
            if name in _OUTERMOST and begin >= end_of_segment:  # joined files have several
                end_of_segment = 0 if length is None else end
                at = at if name == _SEGMENT else end
            elif name not in _IN_SEGMENT and (begin >= end_of_cluster or name not in _IN_CLUSTER):
                return blocks, begin
            elif name == _CLUSTER:  # its elements follow
                end_of_cluster = end
            elif length is None:
                return blocks, begin
            else:
                at = end
            blocks += name in _BLOCKS
    return blocks, None


def _element(file: BinaryIO, at: int) -> tuple[int, int, int | None]:
    """Return the id of a Matroska element, and the position and length of its content; None for an unknown length."""
    head = _read(file, at, 12)
    width = 9 - head[0].bit_length() if head else 1
    rest = head[width:]
    if not rest or not rest[0]:
        return 0, at + len(head), 0
    count = 9 - rest[0].bit_length()
    known = (1 << 7 * count) - 1
    length = int.from_bytes(rest[:count], "big") & known
    return int.from_bytes(head[:width], "big"), at + width + count, None if length == known else length


def _riff(file: BinaryIO) -> Iterator[int]:
    """Yield the end of each RIFF chunk; videos over 1 GB have several."""
    at = 0
    while len(head := _read(file, at, 8)) == 8 and head[:4] == b"RIFF" and head[4:] != _UNKNOWN_SIZE:
        at += 8 + int.from_bytes(head[4:], "little")
        yield at


def _asf(file: BinaryIO) -> Iterator[int]:
    """Yield the end of each object: header, data, indices."""
    at = 0
    while len(head := _read(file, at, 24)) == 24 and (length := int.from_bytes(head[16:], "little")) >= 24:
        at += length
        yield at


def _boxes(file: BinaryIO) -> Iterator[int]:
    """Yield the end of each box of the ISO base media format; a box of length 0 extends to the end of the file."""
    at = 0
    while (box := _box(file, at))[1] >= 8:
        at += box[1]
        yield at


def _box(file: BinaryIO, at: int) -> tuple[bytes, int]:
    """Return the type and length of a box; 0 up to the end of the file, -1 if invalid."""
    head = _read(file, at, 16)
    if len(head) < 8 or not head[4:8].isalnum():
        return b"", -1
    length = int.from_bytes(head[:4], "big")
    if length == 1 and len(head) == 16:
        (length,) = struct.unpack(">Q", head[8:])
    return head[4:8], length if length >= 8 or not length else -1


def invalid_box(video: Path) -> int | None:
    """Return the position of the first invalid part of a fragmented MP4 file, or None.

    FFmpeg ends there without an error: unlike an unfragmented file, it has no list of all its frames.

    Raises:
        OSError: it cannot be read.
    """
    size = video.stat().st_size
    with video.open("rb") as file:
        at, fragmented = 0, False
        while at < size:
            name, length = _box(file, at)
            if length <= 0:
                return at if fragmented and length else None
            fragmented |= name == b"moof"
            at += length
    return None


def _matroska(file: BinaryIO) -> Iterator[int]:
    """Yield the ends of each EBML header and segment, up to one of unknown length; joined files have several."""
    name, at, length = _element(file, 0)
    while name in _OUTERMOST and length is not None:
        at += length
        yield at
        name, at, length = _element(file, at)


def invalid_packets(video: Path) -> tuple[int, int]:
    """Return how many packets of an MPEG transport stream have no start, and of how many; FFmpeg skips them silently.

    Raises:
        OSError: it cannot be read.
    """
    count = valid = 0
    with video.open("rb") as file:
        length, begin = _packet_form(file)
        while length and (part := _read(file, length * count, length << 14)):
            starts = part[begin::length]
            count += len(starts)
            valid += starts.count(_PACKET_START)
    return count - valid, count


def _transport_stream(file: BinaryIO, size: int) -> int:
    """Return the number of bytes missing of the last packet."""
    length, _ = _packet_form(file)
    return -size % length if length else 0


def _packet_form(file: BinaryIO) -> tuple[int, int]:
    """Return the length of a transport stream's packets and the place of their first byte; 0, 0 for other files."""
    head = _read(file, 0, 2 * 192 + 5)
    for length, begin in ((188, 0), (192, 4)):  # the latter of .m2ts
        if head[begin::length][:3] == 3 * _PACKET_START:
            return length, begin
    return 0, 0


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at, os.SEEK_SET)
    return file.read(count)
