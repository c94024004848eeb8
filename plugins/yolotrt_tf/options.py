"""Options of the exporter `tf`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option
from yolotrt_core.types import Layout


@dataclass(frozen=True, slots=True)
class TfOptions:
    """Reading of a TensorFlow model, and conversion to ONNX."""

    opset: int = option(17, help="ONNX operator set", minimum=13, maximum=18)
    names: Path | None = option(
        None,
        help="Class names: a text file with one per line, or YAML with `names`; default: from the model, else numbers",
    )
    signature: str = option("serving_default", help="Signature of a SavedModel")
    input: str | None = option(None, help="Name of the image input; default: the only one")
    output: str | None = option(None, help="Name of the box output; default: the only one")
    rows: Literal["auto", "anchor", "cell"] = option(
        "auto", help="Order of the output's rows within a level: anchor, y, x or y, x, anchor; `auto` detects it"
    )
    units: Literal["auto", "pixels", "normalised"] = option(
        "auto", help="Units of the output's boxes; `normalised` is relative to the image size; `auto` detects them"
    )
    layout: Layout = option(
        "nchw", help="Input layout of the ONNX: nchw (B, 3, H, W), or nhwc (B, H, W, 3) as in TensorFlow"
    )
    strides: str | None = option(None, help="Strides of the levels in the rows' order, e.g. 8,16,32; default: detected")
    quantized: Literal["keep", "float"] = option(
        "keep",
        help="Conversion of int8 TensorFlow Lite files; keep: Q/DQ nodes; float: float weights without activation "
        "rounding, required by TensorRT for files with zero points",
    )
