"""Exporter `tf`: TensorFlow models of YOLOv5 -> ONNX, through tf2onnx.

SavedModel folders, `.keras` and `.h5` files, frozen GraphDefs and TensorFlow Lite files, told apart
by what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.installed import tools_available
from yolotrt_core.options import option
from yolotrt_core.stages import Availability, Exporter
from yolotrt_core.types import BuildRequest, Layout, ModelSource, ModelSpec

YOLOTRT_API = 1
INSTALL = "pip install 'yolotrt-core[tf]'"
# All install the module `tensorflow`.
_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos", "tf-nightly")


@dataclass(frozen=True, slots=True)
class TfOptions:
    """How a TensorFlow model is read, and how the ONNX is written."""

    opset: int = option(17, help="ONNX operator set", minimum=13, maximum=18)
    names: Path | None = option(
        None,
        help="Class names: a text file with one a line, or YAML with `names`; default those in the model, else numbers",
    )
    signature: str = option("serving_default", help="Signature of a SavedModel")
    input: str | None = option(None, help="Name of the picture input; default the only one")
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


class TfExporter:
    """Turns a TensorFlow model into ONNX."""

    name: ClassVar[str] = "tf"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = (
        *(
            f"yolotrt_tf.{module}"
            for module in ("convert", "exporter", "formats", "graph", "keras_classes", "labels", "network", "operators")
        ),
        "yolotrt_core.labels",
        "yolotrt_core.onnx_metadata",
        "yolotrt_core.onnx_form",
        "yolotrt_core.reference",
        "yolotrt_core.rows",
    )
    Options: ClassVar[type] = TfOptions

    def available(self) -> Availability:
        return tools_available(("tensorflow", "tf2onnx", "onnx"), INSTALL)

    def fingerprint(self, options: TfOptions) -> Mapping[str, str]:
        found = {}
        for tool, distributions in (("tensorflow", _DISTRIBUTIONS), *((t, (t,)) for t in ("keras", "tf2onnx", "onnx"))):
            for distribution in distributions:
                try:
                    found[tool] = metadata.version(distribution)
                    break
                except metadata.PackageNotFoundError:
                    continue
        return found

    def has_fixed_size(self, source: ModelSource) -> bool:
        """Say yes: whatever the model takes, its ONNX is written for the size that was asked for."""
        return True

    def export(self, source: ModelSource, request: BuildRequest, options: TfOptions, out: Path) -> ModelSpec:
        from yolotrt_tf import exporter

        return exporter.export(source, request, options, out)


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (TfExporter(),)


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    from yolotrt_tf.formats import recognise

    return "tf" if recognise(source.path) else None
