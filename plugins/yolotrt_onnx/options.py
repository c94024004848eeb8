"""Options of the passes and of the exporter `onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class SimplifyOptions:
    """What is cleaned out of the exported graph."""

    tool: Literal["onnxsim", "onnxslim", "both", "off"] = option(
        "onnxsim", help="What simplifies the exported graph; `both` runs onnxsim, then onnxslim"
    )


@dataclass(frozen=True, slots=True)
class Fp32Options:
    """How exact a single-precision engine is."""

    convolutions: Literal["auto", "plain", "split"] = option(
        "auto",
        help="plain: as they are; split: each as wide as three, whose sum is exact to float32 where the hardware "
        "multiplies in TF32, but slower; auto: split where TF32 is forbidden and the library uses it all the same",
    )


@dataclass(frozen=True, slots=True)
class Fp16Options:
    """Where a half-precision graph keeps float32."""

    input: Literal["fp32", "fp16"] = option("fp32", help="Type of the network's input")
    output: Literal["fp32", "fp16"] = option(
        "fp32", help="Type of the network's output; half resolves 0.5 pixels from 512 on"
    )
    decode: Literal["fp32", "fp16"] = option("fp32", help="Type of the box arithmetic behind the last convolutions")


_STEM = "Quantize the convolution that reads the image"


@dataclass(frozen=True, slots=True)
class Int8Options:
    """What int8 covers; defaults were measured, see the calibrators' README."""

    stem: bool = option(True, help=_STEM)
    head: bool = option(False, help="Quantize the last convolutions, whose results become boxes and scores")
    shortcuts: bool = option(
        False,
        help="Let residual additions read the quantized shortcut; fuses where no activation stands before them",
    )
    concats: Literal["own", "shared"] = option(
        "own", help="Scales of tensors that are joined: each its own, or one for all"
    )
    weights: Literal["channel", "tensor"] = option(
        "channel", help="One weight scale for each output channel, or for the whole tensor"
    )
    keep: str | None = option(None, help="Modules kept in floating point, as model.2.cv1,model.23")
    base: Literal["fp16", "fp32"] = option(
        "fp16", help="Type of everything that is not quantized; box arithmetic stays fp32"
    )


@dataclass(frozen=True, slots=True)
class Fp8Options(Int8Options):
    """What FP8 (E4M3) covers; TensorRT has no FP8 kernel for windows as large as the stem's."""

    stem: bool = option(False, help=_STEM)


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
