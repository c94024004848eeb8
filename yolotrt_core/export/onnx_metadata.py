"""Metadata of ONNX files."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from yolotrt_core.errors import UsageError
from yolotrt_core.types import BuildRequest, ModelSpec


def metadata_of(spec: ModelSpec, request: BuildRequest) -> dict[str, str]:
    """Return the metadata_props of an exported ONNX file.

    `stride`, `names`, `task` and `imgsz` are Python literals, as in upstream's exporter; the rest is provenance.

    Source:
        ultralytics/yolov5 v7.0, export.py, export_onnx.
    """
    return {
        "stride": str(max(spec.strides, default=spec.network_stride)),
        **({"strides": str(list(spec.strides))} if spec.strides else {}),
        "names": str(dict(enumerate(spec.labels))),
        "task": spec.task,
        "imgsz": str([request.height, request.width]),
        "batch": str(request.batch),
        **spec.provenance,
    }


def strides_from_text(text: str | None, flag: str) -> tuple[int, ...] | None:
    """Parse the value of a strides flag, such as 8,16,32; None if it was not given.

    Raises:
        UsageError: not one to eight positive integers.
    """
    if text is None:
        return None
    if not re.fullmatch(" *[1-9][0-9]{0,3}( *, *[1-9][0-9]{0,3}){0,7} *", text):
        raise UsageError(f"`{flag}` expects the stride of each level in pixels, such as 8,16,32, found `{text}`")
    return tuple(int(part) for part in text.split(","))


def literal(text: str | None) -> Any:
    """Parse a metadata value, a Python literal or JSON; None if it is neither."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text or "")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
