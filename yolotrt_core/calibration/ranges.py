"""Ranges files: activation ranges of one ONNX as readable JSON, written by calibrators.

Scales are computed only in this module, so that Q/DQ graphs and TensorRT calibration caches have equal float32
scales.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_core.serialization import number_from_json
from yolotrt_core.types import Json

SCHEMA = 1
# Maximum of symmetric int8 and of E4M3 (ONNX: FLOAT8E4M3FN).
INT8_LEVELS = 127
E4M3_MAX = 448
_HALF_MAX, _HALF_MIN = 65504.0, 2.0**-24


@dataclass(frozen=True, slots=True)
class Ranges:
    """Activation ranges of one network.

    Attributes:
        onnx_sha256: digest of the ONNX the ranges belong to.
        method: calibration method, e.g. `entropy`.
        tensors: tensor name to amax, the maximum magnitude to represent; positive and finite.
        images: calibration images: count, digest, names. preprocessing: description. tools: versions.
            These three are informational.
    """

    onnx_sha256: str
    method: str
    tensors: Mapping[str, float]
    images: Mapping[str, Json] = field(default_factory=dict)
    preprocessing: Mapping[str, Json] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    def for_model(self, onnx_sha256: str) -> Ranges:
        """Return self after checking that it belongs to an ONNX.

        Raises:
            UsageError: the digests differ.
        """
        if self.onnx_sha256 != onnx_sha256:
            raise UsageError(
                f"the ranges are for the ONNX {self.onnx_sha256[:12]}, this model's is {onnx_sha256[:12]}",
                hint="ranges depend on model, size, batch and exporter: calibrate this one with `--calib-data`",
            )
        return self


def int8_scale(amax: float) -> float:
    """Return the scale of symmetric int8 for a range: amax / 127, rounded to a half-precision number.

    ONNX before opset 23 requires scales in the type of the tensor. Eleven bits are exact in half and float32, so
    all scales are equal, independent of the type.
    """
    return _half(amax / INT8_LEVELS)


def e4m3_scale(amax: float) -> float:
    """Return the scale of FP8 E4M3 for a range: amax / 448, rounded like `int8_scale`."""
    return _half(amax / E4M3_MAX)


def _half(value: float) -> float:
    rounded = struct.unpack("<e", struct.pack("<e", min(value, _HALF_MAX)))[0]
    return max(float(rounded), _HALF_MIN)


def amax_of_int8_scale(scale: float) -> float:
    """Return the range of a scale; its `int8_scale` is the nearest half-precision number.

    The product of 24 and 7 bits is exact in float64.
    """
    return scale * INT8_LEVELS


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write a ranges file with one line per tensor, in the given order."""
    for name, amax in ranges.tensors.items():
        if not (math.isfinite(amax) and amax > 0):
            raise ValueError(f"the range of `{name}` is {amax}, not a positive number")
    head = {
        "schema": SCHEMA,
        "onnx_sha256": ranges.onnx_sha256,
        "method": ranges.method,
        "tools": dict(ranges.tools),
        "preprocessing": dict(ranges.preprocessing),
        "images": dict(ranges.images),
        "tensors": dict(ranges.tensors),
    }
    path.write_text(json.dumps(head, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_ranges(path: Path) -> Ranges:
    """Read a ranges file.

    Raises:
        UsageError: it cannot be read, is invalid, or has another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UsageError(f"cannot read the ranges `{path}`: {os_error_reason(err)}") from err
    except json.JSONDecodeError as err:
        raise UsageError(
            f"`{path}` is not a ranges file: invalid JSON at line {err.lineno}, column {err.colno}"
        ) from err
    except (ValueError, RecursionError) as err:  # not UTF-8, huge numbers, deep nesting
        raise UsageError(f"`{path}` is not a ranges file: invalid JSON") from err
    return ranges_from_json(data, str(path))


def ranges_from_json(data: object, where: str) -> Ranges:
    """Parse the JSON of a ranges file; `where` is its name for errors."""
    if not isinstance(data, dict) or not isinstance(data.get("tensors"), dict):
        raise UsageError(f"`{where}` is not a ranges file: object `tensors` is missing")
    if data.get("schema") != SCHEMA:
        raise UsageError(f"`{where}` has schema {data.get('schema')!r}, this version reads {SCHEMA}")
    for key in ("onnx_sha256", "method"):
        if not isinstance(data.get(key), str):
            raise UsageError(f"`{where}` is not a ranges file: `{key}` is missing")
    tensors = {}
    for name, found in data["tensors"].items():
        amax = number_from_json(found)
        if amax is None or amax <= 0:
            raise UsageError(f"`{where}`: the range of `{name}` is {found!r}, expected a positive number")
        tensors[name] = amax
    extra = {key: data[key] for key in ("images", "preprocessing", "tools") if isinstance(data.get(key), dict)}
    return Ranges(onnx_sha256=data["onnx_sha256"], method=data["method"], tensors=tensors, **extra)


def add_origin(
    path: Path, *, images: Mapping[str, Json], preprocessing: Mapping[str, Json], tools: Mapping[str, str]
) -> Ranges:
    """Add images, preprocessing and tools to a calibrator's ranges file, and return its content."""
    ranges = read_ranges(path)
    ranges = replace(ranges, images=images, preprocessing=preprocessing, tools={**tools, **ranges.tools})
    write_ranges(path, ranges)
    return ranges
