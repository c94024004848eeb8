"""Metadata of ONNX files, for exporters of any framework."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from yolotrt_core.errors import UsageError
from yolotrt_core.types import BuildRequest, ModelSpec


def metadata_of(spec: ModelSpec, request: BuildRequest) -> dict[str, str]:
    """Return what an exporter writes into an ONNX file's metadata_props.

    `stride`, `names`, `task`, `imgsz` are Python literals, as upstream's exporter writes and its readers
    expect them; the rest is provenance.

    Source:
        ultralytics/yolov5 v7.0, export.py, export_onnx.
    """
    return {
        "stride": str(max(spec.strides)),
        "strides": str(list(spec.strides)),
        "names": str(dict(enumerate(spec.labels))),
        "task": "detect",
        "imgsz": str([request.height, request.width]),
        "batch": str(request.batch),
        **spec.provenance,
    }


def strides_from_text(text: str | None, flag: str) -> tuple[int, ...] | None:
    """Parse the strides given by a flag, as 8,16,32; None if it was not given.

    Raises:
        UsageError: not one to eight positive whole numbers.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3}){0,7}", text.replace(" ", "")):
        raise UsageError(f"`{flag}` expects pixels per cell of each level, as 8,16,32, found `{text}`")
    return tuple(int(part) for part in text.split(","))


def literal(text: str | None) -> Any:
    """Read one metadata value, a Python literal or JSON; None if it is neither."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text or "")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
