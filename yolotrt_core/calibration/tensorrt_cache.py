"""TensorRT's calibration cache text (8.x and 10.x), so that ranges can go there and come back.

The form, from published caches: a header `TRT-VERSION-ALGORITHM`, then a line `TENSOR: HEX` each, where
HEX is the big-endian float32 of the scale amax / 127. A cache with another version or algorithm than
the library's own is ignored by it, so both must be named when one is written.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from yolotrt_core.calibration.ranges import int8_scale
from yolotrt_core.errors import UsageError

# What TensorRT's calibrator classes are called here, and in the header of their caches.
CALIBRATORS = {"entropy2": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?!\d)")
_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_LINE = re.compile(r"(?P<name>.+): (?P<hex>[0-9a-fA-F]{8})")


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """What a cache says.

    Attributes:
        version: the library's number: 8.6.1 is 8601, 10.3.0 is 100300.
        algorithm: as the header names it, e.g. `EntropyCalibration2`.
        scales: tensor name to float32 scale, in the file's order.
    """

    version: int
    algorithm: str
    scales: Mapping[str, float]


def version_number(version: str) -> int:
    """Return a release such as `10.3.0` as the number TensorRT writes in its caches.

    Raises:
        UsageError: no release number.
    """
    found = _RELEASE.match(version)
    if found is None:
        raise UsageError(f"expected a TensorRT release as 10.3.0, found `{version}`")
    major, minor, patch = map(int, found.groups("0"))
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def cache_from_ranges(tensors: Mapping[str, float], version: int, algorithm: str) -> str:
    """Return ranges (tensor name to amax) as the text of a cache."""
    lines = [f"TRT-{version}-{algorithm}"]
    lines += [f"{name}: {struct.pack('>f', int8_scale(amax)).hex()}" for name, amax in tensors.items()]
    return "\n".join(lines) + "\n"


def is_cache(text: str) -> bool:
    """Say whether a text begins as a cache does."""
    return _HEADER.match(text) is not None


def parse_cache(text: str, where: str) -> CalibrationCache:
    """Take a cache apart; tensors of scale 0, which TensorRT writes for what is always zero, are left out.

    Args:
        where: names the file in errors.

    Raises:
        UsageError: no header, a line that is none, or a scale that is negative or not finite.
    """
    head, *lines = text.splitlines() or [""]
    header = _HEADER.fullmatch(head.strip())
    if header is None:
        raise UsageError(f"`{where}` is no TensorRT calibration cache: it begins `{head[:40]}`, not `TRT-...`")
    scales = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())  # greedy: a tensor's name may hold `: ` itself
        if found is None:
            raise UsageError(f"`{where}`, line {number}: expected `TENSOR: 8 hex digits`, found `{line[:60]}`")
        scale = float(struct.unpack(">f", bytes.fromhex(found["hex"]))[0])
        if not 0 <= scale < float("inf"):
            raise UsageError(f"`{where}`, line {number}: the scale of `{found['name']}` is {scale}")
        if scale > 0:
            scales[found["name"]] = scale
    return CalibrationCache(int(header[1]), header[2], scales)
