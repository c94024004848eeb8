"""The values passed from stage to stage. All but arrays round-trip through JSON, see `serialization`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Union, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]  # noqa: UP007 - `|` fails on a forward name
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# Where the channels of a network's input lie: before its sides (torch's way) or behind (TensorFlow's).
Layout = Literal["nchw", "nhwc"]
CHANNELS = 3


def layout_of(shape: Sequence[object]) -> Layout:
    """Return the layout of an input shape; a dynamic dimension may be anything but 3.

    The shape decides it, since exactly one of the two axes can have three entries: height and width are multiples of
    the strides. So no further field has to be kept, or could contradict it.
    """
    return "nhwc" if len(shape) == 4 and shape[3] == CHANNELS and shape[1] != CHANNELS else "nchw"


def with_channels(batch: T, height: T, width: T, layout: Layout) -> tuple[T | int, ...]:
    """Return the input shape, (B, 3, H, W) or (B, H, W, 3); dimensions are numbers or names."""
    return (batch, height, width, CHANNELS) if layout == "nhwc" else (batch, CHANNELS, height, width)


def without_channels(shape: Sequence[T], layout: Layout) -> tuple[T, T, T]:
    """Return (batch, height, width) of an input shape of four dimensions."""
    first = 1 if layout == "nhwc" else 2
    return shape[0], shape[first], shape[first + 1]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a file or folder whose content is known by digest.

    Attributes:
        path: the file, or the folder of a format that is one (SavedModel).
        sha256: digest of the file; of a folder, of its sorted relative names and contents.
        name: short name for people and output folders, e.g. `yolov5n`.
        imgsz: (height, width) the model is best used at where the source is known to yolotrt,
            else None; an explicit `--imgsz` wins.
    """

    path: Path
    sha256: str
    name: str
    imgsz: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor: `dtype` in NumPy's spelling, a `str` dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What later stages must know of a network, whatever framework it came from.

    Attributes:
        inputs: named `images`, (B, 3, H, W) or (B, H, W, 3), RGB in 0..1; see `layout_of`.
        outputs: for YOLOv5 one tensor `output0`, (B, N, 5 + C): cx, cy, w, h in input pixels,
            objectness, class scores in 0..1; rows ordered by level, anchor, y, x.
        labels: class names, index is the class id.
        strides: pixels per cell of each detection level, finest first.
        head: what the postprocessor must be able to decode, e.g. `yolov5`.
        anchors: per level, (width, height) of each anchor in input pixels; empty if the head has none.
        provenance: facts about the origin, for people; never needed to run.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    strides: tuple[int, ...]
    head: str = "yolov5"
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Where the channels of the input lie."""
        return layout_of(self.inputs[0].shape)


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file, its digest and what is in it."""

    path: Path
    sha256: str
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Calibration:
    """The ranges of a network's activations, as the readable file `ranges.json`."""

    ranges_path: Path
    sha256: str
    method: str


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """One optimization profile; each shape is (batch, height, width)."""

    min: tuple[int, int, int]
    opt: tuple[int, int, int]
    max: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the user wants built. Height and width in pixels, multiples of the largest stride.

    `profiles` is empty for a static model; with `dynamic` there is at least one. `exact_fp32`: the library that will
    run the network multiplies fp32 operands cut short, which the user forbids, so a pass must write them as sums.
    """

    precision: Precision
    batch: int
    height: int
    width: int
    dynamic: bool = False
    profiles: tuple[ShapeRange, ...] = ()
    exact_fp32: bool = False


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a runner must know of an engine; stored as `<engine file>.json` beside it.

    Attributes:
        model: the network as the engine exposes it (names, dtypes, shapes, labels, strides).
        precision: lowest precision of the convolutions.
        builder: name of the builder that made the engine and can open it.
        tools: what made it, e.g. {"module": "tensorrt_rtx", "version": "1.7.1.116"}.
        profiles: the shapes a dynamic engine accepts; empty if static.
        onnx_sha256: the typed ONNX it was built from.
        engine_sha256: digest of the engine file; filled in by the pipeline.
    """

    model: ModelSpec
    precision: Precision
    builder: str
    tools: Mapping[str, str]
    profiles: tuple[ShapeRange, ...] = ()
    onnx_sha256: str = ""
    engine_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one source image was placed in the network input by the letterbox.

    Attributes:
        source: (height, width) of the image in pixels.
        target: (height, width) of the network input in pixels.
        scale: resized pixels per source pixel, the same on both axes.
        pad: real-valued (left, top) padding in input pixels, as boxes are moved back by.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    scale: float
    pad: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the network's candidates become detections.

    Attributes:
        conf: least score kept, exclusive, 0..1. iou: overlap above which the lower-scored box
            goes, exclusive, 0..1. multi_label: a box may count once for each class over `conf`.
        agnostic: boxes of different classes suppress each other. classes: ids kept; empty: all.
        max_det: most detections for one image.
    """

    conf: float = 0.25
    iou: float = 0.45
    multi_label: bool = False
    agnostic: bool = False
    classes: tuple[int, ...] = ()
    max_det: int = 300


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The boxes found on one image, best score first.

    Attributes:
        boxes: float32 (M, 4), x1 y1 x2 y2 in source-image pixels, clipped to the image.
        scores: float32 (M,), 0..1. class_ids: int64 (M,).
        truncated: how many further boxes `max_det` cut off; 0 says that nothing is missing.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.scores)
