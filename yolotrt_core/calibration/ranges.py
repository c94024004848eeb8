"""The ranges file: how far each activation of one ONNX reaches, in a form that people can read and compare.

A calibrator writes it, every lowering reads it. What a range becomes is decided here and nowhere
else, so that a Q/DQ graph and a TensorRT calibration cache hold the same float32 scale, bit for bit.
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
# Largest code of symmetric int8 and largest number of E4M3 (ONNX: FLOAT8E4M3FN).
INT8_LEVELS = 127
E4M3_MAX = 448
_HALF_MAX, _HALF_LEAST = 65504.0, 2.0**-24


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of one network's activations.

    Attributes:
        onnx_sha256: the ONNX whose tensors these are; they mean nothing in another.
        method: how they were found, e.g. `entropy`.
        tensors: tensor name to amax, the largest magnitude worth keeping; positive and finite.
        images: which images were seen: count, digest, names. preprocessing: how they were made
            into network input. tools: versions. All three for people and for comparison.
    """

    onnx_sha256: str
    method: str
    tensors: Mapping[str, float]
    images: Mapping[str, Json] = field(default_factory=dict)
    preprocessing: Mapping[str, Json] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    def for_model(self, onnx_sha256: str) -> Ranges:
        """Return self, refusing ranges of another network.

        Raises:
            UsageError: they were made for an ONNX of another digest.
        """
        if self.onnx_sha256 != onnx_sha256:
            raise UsageError(
                f"the ranges are for the ONNX {self.onnx_sha256[:12]}, this model's is {onnx_sha256[:12]}",
                hint="another model, size, batch or exporter is another ONNX: calibrate it with `--calib-data`",
            )
        return self


def int8_scale(amax: float) -> float:
    """Return the scale of symmetric int8 for a range: amax / 127, rounded to a half-precision number.

    ONNX before operator set 23 wants a scale in the type of its tensor. Eleven bits are exact in half and
    in float32, so every lowering holds the same float32, whatever type its graph has.
    """
    return _half(amax / INT8_LEVELS)


def e4m3_scale(amax: float) -> float:
    """Return the scale of FP8 E4M3 for a range: amax / 448, rounded as `int8_scale` does."""
    return _half(amax / E4M3_MAX)


def _half(value: float) -> float:
    rounded = struct.unpack("<e", struct.pack("<e", min(value, _HALF_MAX)))[0]
    return max(float(rounded), _HALF_LEAST)


def amax_of_int8_scale(scale: float) -> float:
    """Return the range that belongs to a scale; `int8_scale` of it is the scale's nearest half number.

    A scale's 24 bits times the 7 of 127 fit a float64, so the product is exact and divides back.
    """
    return scale * INT8_LEVELS


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write a ranges file: one line for each tensor, in the order given."""
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
        UsageError: it cannot be read, is none, is of another schema, or holds a value that is no range.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UsageError(f"cannot read the ranges `{path}`: {os_error_reason(err)}") from err
    except json.JSONDecodeError as err:
        raise UsageError(f"`{path}` is no ranges file: no JSON from line {err.lineno}, column {err.colno} on") from err
    except (ValueError, RecursionError) as err:  # bytes that are no text, numbers of thousands of digits, deep nesting
        raise UsageError(f"`{path}` is no ranges file: no JSON that can be read") from err
    return ranges_from_json(data, str(path))


def ranges_from_json(data: object, where: str) -> Ranges:
    """Check and take apart the JSON of a ranges file; `where` names it in errors."""
    if not isinstance(data, dict) or not isinstance(data.get("tensors"), dict):
        raise UsageError(f"`{where}` is no ranges file: it has no table `tensors`")
    if data.get("schema") != SCHEMA:
        raise UsageError(f"`{where}` has schema {data.get('schema')!r}, this yolotrt reads {SCHEMA}")
    for key in ("onnx_sha256", "method"):
        if not isinstance(data.get(key), str):
            raise UsageError(f"`{where}` is no ranges file: `{key}` is missing")
    tensors = {}
    for name, found in data["tensors"].items():
        amax = number_from_json(found)
        if amax is None or amax <= 0:
            raise UsageError(f"`{where}`: the range of `{name}` is {found!r}, expected a positive number")
        tensors[name] = amax
    extra = {key: data[key] for key in ("images", "preprocessing", "tools") if isinstance(data.get(key), dict)}
    return Ranges(onnx_sha256=data["onnx_sha256"], method=data["method"], tensors=tensors, **extra)


def with_origin(
    path: Path, *, images: Mapping[str, Json], preprocessing: Mapping[str, Json], tools: Mapping[str, str]
) -> Ranges:
    """Add to the file a calibrator wrote what only its caller knows, and return it."""
    ranges = read_ranges(path)
    ranges = replace(ranges, images=images, preprocessing=preprocessing, tools={**tools, **ranges.tools})
    write_ranges(path, ranges)
    return ranges
