"""Conversion between ranges and TensorRT calibration caches (8.x and 10.x).

Format, from published caches: a header `TRT-VERSION-ALGORITHM`, then lines `TENSOR: HEX`, where HEX is the big-endian
float32 of the scale amax / 127. TensorRT ignores caches of another version or algorithm, so both are required.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from yolotrt_core.calibration.ranges import int8_scale
from yolotrt_core.errors import UsageError

# Short names of TensorRT's calibrators, and their names in cache headers.
CALIBRATORS = {"entropy2": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?!\d)")
_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_LINE = re.compile(r"(?P<name>.+): (?P<hex>[0-9a-fA-F]{8})")


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """Content of a calibration cache.

    Attributes:
        version: number of the TensorRT version: 8.6.1 is 8601, 10.3.0 is 100300.
        algorithm: name in the header, e.g. `EntropyCalibration2`.
        scales: tensor name to float32 scale, in the file's order.
    """

    version: int
    algorithm: str
    scales: Mapping[str, float]


def version_number(version: str) -> int:
    """Return the number of a version such as `10.3.0` in cache headers.

    Raises:
        UsageError: invalid version.
    """
    found = _RELEASE.match(version)
    if found is None:
        raise UsageError(f"expected a TensorRT version such as 10.3.0, found `{version}`")
    major, minor, patch = map(int, found.groups("0"))
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def cache_from_ranges(tensors: Mapping[str, float], version: int, algorithm: str) -> str:
    """Convert ranges (tensor name to amax) to a calibration cache."""
    lines = [f"TRT-{version}-{algorithm}"]
    lines += [f"{name}: {struct.pack('>f', int8_scale(amax)).hex()}" for name, amax in tensors.items()]
    return "\n".join(lines) + "\n"


def is_cache(text: str) -> bool:
    """Return whether text starts with a cache header."""
    return _HEADER.match(text) is not None


def parse_cache(text: str, where: str) -> CalibrationCache:
    """Parse a cache; tensors of scale 0, which are always zero, are skipped.

    Args:
        where: name of the file for errors.

    Raises:
        UsageError: no header, an invalid line, or a scale that is negative or not finite.
    """
    head, *lines = text.splitlines() or [""]
    header = _HEADER.fullmatch(head.strip())
    if header is None:
        raise UsageError(f"`{where}` is not a TensorRT calibration cache: expected `TRT-...`, found `{head[:40]}`")
    scales = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())  # greedy: a tensor's name may contain `: `
        if found is None:
            raise UsageError(f"`{where}`, line {number}: expected `TENSOR: 8 hex digits`, found `{line[:60]}`")
        scale = float(struct.unpack(">f", bytes.fromhex(found["hex"]))[0])
        if not 0 <= scale < float("inf"):
            raise UsageError(f"`{where}`, line {number}: the scale of `{found['name']}` is {scale}")
        if scale > 0:
            scales[found["name"]] = scale
    return CalibrationCache(int(header[1]), header[2], scales)
