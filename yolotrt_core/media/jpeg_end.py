"""Whether a JPEG file without its end still has all its pixels (ITU-T T.81).

Decoders do not say it: OpenCV before 4.12 fills missing pixels silently, later versions refuse both kinds of files.
Counting coded blocks would need a Huffman decoder. But a decoder only needs more bits after the end of the data if
pixels are missing, and then the bits that follow change what it decodes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_START, _END = b"\xff\xd8", b"\xff\xd9"
_END_CODE, _SCAN, _RESTART_INTERVAL = 0xD9, 0xDA, 0xDD
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; with Huffman coding
_PROGRESSIVE = 0xC2
_MARKER_AFTER_SCAN = re.compile(rb"\xff+[^\xff\x00\xd0-\xd7]", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# One byte each, since decoders read up to eight bytes ahead but complain about more. They start with different bits
# than each other or than the zeros that decoders add.
_FOLLOWING = (b"\xaa", b"\x6d")
_MAX_SIDE = 0xFFFF


@dataclass(frozen=True, slots=True)
class Completed:
    """A JPEG file that got its end marker.

    Attributes:
        data: decodes to the image. probes: decode to equal pixels if and only if none is missing.
    """

    data: bytes
    probes: tuple[bytes, ...]


@dataclass(slots=True)
class _Component:
    horizontal: int
    vertical: int
    missing_bits: list[int]  # of each of the 64 coefficients


@dataclass(slots=True)
class _Frame:
    """The frame header, and the last scan."""

    at: int
    marker: int
    height: int
    width: int
    components: dict[int, _Component]
    scanned: list[_Component] = field(default_factory=list)
    scan: int = 0

    def read_scan(self, data: bytes, at: int, begin: int) -> None:
        """Note the components and coefficients of the scan whose header is at `at` and whose data is at `begin`."""
        count = data[at + 4]
        first, last, low = data[begin - 3], data[begin - 2], data[begin - 1] & 15
        if self.marker != _PROGRESSIVE:
            first, last, low = 0, 63, 0
        self.scan = begin
        self.scanned = [self.components[data[at + 5 + 2 * i]] for i in range(count)]
        for component in self.scanned:
            component.missing_bits[first : last + 1] = [low] * (last + 1 - first)

    @property
    def _sampling(self) -> tuple[int, int]:
        """The highest vertical and horizontal sampling factors."""
        components = self.components.values()
        return max(c.vertical for c in components), max(c.horizontal for c in components)

    @property
    def all_scanned(self) -> bool:
        """Whether no coefficient needs another scan."""
        return all(not any(c.missing_bits) for c in self.components.values())

    def intervals(self, units: int) -> int:
        """Return the number of restart intervals of the last scan, each of so many coded units."""
        tall, wide = self._sampling
        if len(self.scanned) > 1:
            rows, columns = math.ceil(self.height / (8 * tall)), math.ceil(self.width / (8 * wide))
        else:
            (one,) = self.scanned
            rows = math.ceil(math.ceil(self.height * one.vertical / tall) / 8)
            columns = math.ceil(math.ceil(self.width * one.horizontal / wide) / 8)
        return math.ceil(rows * columns / units)

    def enlarged(self, data: bytes) -> bytes:
        """Return the file with a size that shows its blocks beyond the right and lower edge.

        Progressive files do not code these blocks in most scans.
        """
        if self.marker == _PROGRESSIVE or len(self.scanned) < len(self.components):
            return data
        several = len(self.components) > 1
        units = (8 * sampling if several else 8 for sampling in self._sampling)
        sides = [math.ceil(side / unit) * unit for side, unit in zip((self.height, self.width), units, strict=True)]
        if max(sides) > _MAX_SIDE:
            return data
        return data[: self.at + 5] + b"".join(side.to_bytes(2) for side in sides) + data[self.at + 9 :]


def complete(data: bytes) -> Completed | None:
    """Add the end marker to a JPEG file that lacks it.

    Returns:
        None if rows are missing for certain: the file ends before its last scan or restart interval.

    Raises:
        ValueError: the first image in it has an end marker, or it is not a JPEG file.
    """
    if not data.startswith(_START):
        raise ValueError("not a JPEG file")
    try:
        frame, length, interval = _walk(data)
    except (IndexError, KeyError):
        return None
    if frame is None or not frame.scan or not frame.all_scanned:
        return None
    data = data[:length].rstrip(b"\xff")  # a part of a marker
    if interval and len(_RESTART.findall(data, frame.scan)) < frame.intervals(interval) - 1:
        return None
    enlarged = frame.enlarged(data)
    return Completed(data + _END, tuple(enlarged + following + _END for following in (b"", *_FOLLOWING)))


def _walk(data: bytes) -> tuple[_Frame | None, int, int]:
    """Return the frame header, the end of the last complete segment or scan, and the restart interval.

    Raises:
        ValueError: there is an end marker. IndexError, KeyError: a segment is invalid.
    """
    at, interval = 2, 0
    frame: _Frame | None = None
    while True:
        begin = at
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if len(data) < at + 4 and data[at : at + 2] != _END:
            return frame, begin, interval
        marker = data[at + 1]
        if data[at] != 0xFF or marker == _END_CODE:
            raise ValueError("it has an end marker, or other data after a segment")
        following = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if following > len(data):
            return frame, begin, interval
        if marker in _FRAMES:
            frame = _read_frame(data, at)
        elif marker == _RESTART_INTERVAL:
            interval = int.from_bytes(data[at + 4 : at + 6])
        elif marker == _SCAN:
            if frame is None:
                return None, begin, interval
            frame.read_scan(data, at, following)
            found = _MARKER_AFTER_SCAN.search(data, following)
            if found is None:
                return frame, len(data), interval
            following = found.start()
        at = following


def _read_frame(data: bytes, at: int) -> _Frame:
    components = {}
    for entry in range(at + 10, at + 10 + 3 * data[at + 9], 3):
        horizontal, vertical = data[entry + 1] >> 4, data[entry + 1] & 15
        if not 0 < horizontal <= 4 or not 0 < vertical <= 4:
            raise IndexError
        components[data[entry]] = _Component(horizontal, vertical, [1] * 64)
    height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
    if not components or not height or not width:
        raise IndexError
    return _Frame(at, data[at + 1], height, width, components)
