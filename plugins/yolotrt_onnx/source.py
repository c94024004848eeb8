"""Exporter `onnx`: an ONNX file of anyone's as the source of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from yolotrt_core.installed import tools_available
from yolotrt_core.options import option
from yolotrt_core.stages import Availability
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, Precision
from yolotrt_onnx.stage import versions

_OTHER_FORMATS = ((0, b"PK"), (0, b"\x80"), (0, b"\x89HDF"), (4, b"TFL3"))
# Fields of ModelProto that may follow ir_version: producer, domain, model_version, graph, opset_import, metadata.
_SECOND_TAGS = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42\x72")


@dataclass(frozen=True, slots=True)
class OnnxSourceOptions:
    """How an ONNX file is read."""

    names: Path | None = option(
        None,
        help="Class names: a text file with one a line, or YAML with `names`; default those in the file, else numbers "
        "for a YOLOv5 head and an error for any other",
    )
    output: str | None = option(None, help="Name of the box output; default the only one of three dimensions")
    head: str = option(
        "yolov5", help="What the output holds; another head than `yolov5` needs a postprocessor plugin that decodes it"
    )
    rows: Literal["auto", "anchor", "cell"] = option(
        "auto", help="Order of a YOLOv5 output's rows within a level: anchor, y, x or y, x, anchor; `auto` finds it"
    )
    units: Literal["auto", "pixels", "normalised"] = option(
        "auto", help="Units of a YOLOv5 output's boxes; `normalised` is by width and height; `auto` finds them"
    )
    strides: str | None = option(
        None, help="Pixels per cell of each level in the rows' order, as 8,16,32; default found"
    )


class OnnxExporter:
    """Checks an ONNX file and brings it to the project's layout."""

    name: ClassVar[str] = "onnx"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = (
        "yolotrt_onnx.exporter",
        "yolotrt_onnx.edits",
        "yolotrt_onnx.graph",
        "yolotrt_onnx.held",
        "yolotrt_core.shapes",
        "yolotrt_core.labels",
        "yolotrt_core.onnx_metadata",
        "yolotrt_core.reference",
        "yolotrt_core.rows",
    )
    Options: ClassVar[type] = OnnxSourceOptions

    def available(self) -> Availability:
        return tools_available(("onnx", "onnxruntime"))

    def fingerprint(self, options: OnnxSourceOptions) -> Mapping[str, str]:
        return versions("onnx", "onnxruntime")

    def export(self, source: ModelSource, request: BuildRequest, options: OnnxSourceOptions, out: Path) -> ModelSpec:
        from yolotrt_onnx import exporter

        return exporter.export(source, request, options, out)

    def native_size(self, source: ModelSource) -> tuple[int, int] | None:
        """Return the (height, width) that the file fixes, or that its metadata names; None if neither."""
        from yolotrt_onnx import exporter

        return exporter.native_size(source.path)

    def has_fixed_size(self, source: ModelSource) -> bool:
        """Say whether the file fixes height and width."""
        from yolotrt_onnx import exporter

        return exporter.has_fixed_size(source.path)

    def held_precision(self, source: ModelSource) -> Precision | None:
        """Return the lowest precision of the file's convolutions; None where all are float32."""
        from yolotrt_onnx import exporter

        return exporter.precision_of(source.path)


def claims(path: Path) -> bool:
    """Say whether a file starts as ONNX does, or is named so and is not plainly something else."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(16)
    # ir_version 3 (2017) and later, then another field: a SavedModel starts alike with version 1.
    if head[:1] == b"\x08" and head[1:2] and 3 <= head[1] < 32 and head[2:3] and head[2] in _SECOND_TAGS:
        return True
    other = any(head[at:].startswith(magic) for at, magic in _OTHER_FORMATS)
    return path.suffix.lower() == ".onnx" and not other
