"""Options of the passes and of the exporter `onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class SimplifyOptions:
    """How the exported graph is simplified."""

    tool: Literal["onnxsim", "onnxslim", "both", "off"] = option(
        "onnxsim", help="Tool that simplifies the exported graph; `both` runs onnxsim, then onnxslim"
    )


@dataclass(frozen=True, slots=True)
class Fp32Options:
    """Accuracy of fp32 engines."""

    convolutions: Literal["auto", "plain", "split"] = option(
        "auto",
        help="fp32 convolutions; plain: unchanged; split: three terms whose sum is exact on TF32 hardware, but slower; "
        "auto: split where TF32 is off and the library uses it regardless",
    )


@dataclass(frozen=True, slots=True)
class Fp16Options:
    """Tensors that stay float32 in an fp16 graph."""

    input: Literal["fp32", "fp16"] = option("fp32", help="Type of the network's input")
    output: Literal["fp32", "fp16"] = option(
        "fp32", help="Type of the network's output; fp16 has a resolution of 0.5 px above 512"
    )
    decode: Literal["fp32", "fp16"] = option("fp32", help="Type of box decoding, after the last convolutions")


_STEM = "Quantization of the first convolution"


@dataclass(frozen=True, slots=True)
class Int8Options:
    """What int8 quantizes; for the choice of defaults see the calibrators' README."""

    stem: bool = option(True, help=_STEM)
    head: bool = option(False, help="Quantization of the last convolutions, which output boxes and scores")
    shortcuts: bool = option(
        False,
        help="Quantization of the shortcut of residual additions; fuses only without an activation before the addition",
    )
    concats: Literal["own", "shared"] = option("own", help="Scales of concatenated tensors: one each, or one for all")
    weights: Literal["channel", "tensor"] = option(
        "channel", help="Granularity of weight scales: one per output channel, or one per tensor"
    )
    keep: str | None = option(None, help="Modules that stay in floating point, e.g. model.2.cv1,model.23")
    base: Literal["fp16", "fp32"] = option("fp16", help="Type of everything not quantized; box decoding stays fp32")


@dataclass(frozen=True, slots=True)
class Fp8Options(Int8Options):
    """What FP8 (E4M3) quantizes; TensorRT has no FP8 kernel for the stem's kernel size."""

    stem: bool = option(False, help=_STEM)


@dataclass(frozen=True, slots=True)
class OnnxSourceOptions:
    """How an ONNX file is read."""

    names: Path | None = option(
        None,
        help="Class names: a text file with one per line, or YAML with `names`; default: those in the file, else "
        "numbers for a YOLOv5 head and an error for any other",
    )
    output: str | None = option(
        None,
        help="Name of the box output, or names of a head's maps with commas; default: the only one with three "
        "dimensions",
    )
    columns: str | None = option(
        None,
        help="Columns of a row from left to right, e.g. classes=80, or box=4,objectness=1,skip=10,classes=1; further "
        "ones are dropped; default: all after objectness are classes",
    )
    anchors: str | None = option(
        None,
        help="Anchors in pixels of a head without decoding, levels separated by a slash, e.g. 10,13,16,30/30,61,62,45; "
        "default: those in the file's metadata",
    )
    head: str = option(
        "yolov5",
        help="Head of the model; `yolov5_cls`: a classification model; others need a postprocessor plugin",
    )
    rows: Literal["auto", "anchor", "cell"] = option(
        "auto", help="Order of a YOLOv5 output's rows within a level: anchor, y, x or y, x, anchor; `auto` detects it"
    )
    units: Literal["auto", "pixels", "normalised"] = option(
        "auto",
        help="Units of a YOLOv5 output's boxes; `normalised` is relative to the image size; `auto` detects them",
    )
    strides: str | None = option(None, help="Strides of the levels in the rows' order, e.g. 8,16,32; default: detected")
    range: Literal["auto", "1", "255"] = option(
        "auto", help="Largest value of an image that the file expects; `auto` reads it from the graph's constants"
    )
    order: Literal["auto", "rgb", "bgr"] = option(
        "auto",
        help="Order of channels that the file expects; `auto`: bgr if the graph swaps red and blue, else rgb",
    )
    normalize: Literal["auto", "on", "off"] = option(
        "auto",
        help="ImageNet's mean and deviation before the graph of a classification model, as YOLOv5 trains it; `auto`: "
        "unless the graph subtracts a mean itself",
    )
