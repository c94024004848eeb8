"""Options of the exporter `tf`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option
from yolotrt_core.types import Layout


@dataclass(frozen=True, slots=True)
class TfOptions:
    """How a TensorFlow model is read, and how the ONNX is written."""

    opset: int = option(17, help="ONNX operator set", minimum=13, maximum=18)
    names: Path | None = option(
        None,
        help="Class names: a text file with one a line, or YAML with `names`; default those in the model, else numbers",
    )
    signature: str = option("serving_default", help="Signature of a SavedModel")
    input: str | None = option(None, help="Name of the image input; default the only one")
    output: str | None = option(None, help="Name of the box output; default the only one")
    rows: Literal["auto", "anchor", "cell"] = option(
        "auto", help="Order of the output's rows within a level: anchor, y, x or y, x, anchor; `auto` finds it"
    )
    units: Literal["auto", "pixels", "normalised"] = option(
        "auto", help="Units of the output's boxes; `normalised` is by width and height; `auto` finds them"
    )
    layout: Layout = option(
        "nchw", help="Input of the ONNX: nchw (B, 3, H, W), or nhwc (B, H, W, 3) as TensorFlow has it"
    )
    strides: str | None = option(
        None, help="Pixels per cell of each level in the rows' order, as 8,16,32; default found"
    )
    quantized: Literal["keep", "float"] = option(
        "keep",
        help="An int8 TensorFlow Lite file as Q/DQ nodes, or with its weights as floats and no other rounding "
        "(TensorRT takes no zero points, so there only `float` builds)",
    )
