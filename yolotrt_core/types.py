"""The values handed from stage to stage. All but arrays round-trip through JSON."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from yolotrt_core.layout import Layout, layout_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = typing.TypeVar("T")
Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]  # noqa: UP007 - `|` fails on a forward name
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = typing.get_args(Precision)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a file or folder whose content is known by digest.

    Attributes:
        path: the file, or the folder of a format that is one (SavedModel).
        sha256: digest of the file; of a folder, of its sorted relative names and contents.
        name: short name for people and output folders, e.g. `yolov5n`.
        imgsz: (height, width) the model is best used at where the source is known to yolotrt,
            else None; an explicit `--imgsz` wins.
        holds: the precision that the model itself is in already, else None: a float32 network.
    """

    path: Path
    sha256: str
    name: str
    imgsz: tuple[int, int] | None = None
    holds: Precision | None = None


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
        inputs: named `images`, (B, 3, H, W) or (B, H, W, 3), RGB in 0..1; the shape tells which (`layout`).
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


def to_json(value: Any) -> Json:
    """Return a dataclass of this module (or nested containers of them) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_json(v) for v in value), key=repr)
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def number_from_json(data: object) -> float | None:
    """Return a JSON number as a float; None for anything else, NaN, infinity and what no float can hold."""
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        return None
    try:
        return float(data) if math.isfinite(data) else None
    except OverflowError:
        return None


def from_json(cls: type[T], data: Any) -> T:
    """Rebuild a dataclass of this module from `to_json`'s output; unknown keys are refused."""
    return typing.cast(T, _decode(cls, data))


def _decode(hint: Any, data: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        choices = [a for a in args if a is not type(None)]
        exact = [a for a in choices if (typing.get_origin(a) or a) is type(data)]
        return _decode(exact[0] if exact else choices[0], data)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(args[0], item) for item in data)
        if len(args) != len(data):
            raise ValueError(f"expected {len(args)} items, found {len(data)}")
        return tuple(_decode(a, item) for a, item in zip(args, data, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {k: _decode(args[1], v) for k, v in data.items()}
    if origin is Literal:
        if data not in args:
            raise ValueError(f"expected one of {args}, found {data!r}")
        return data
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        unknown = set(data) - set(hints)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)} for {hint}")
        return typing.cast(Any, hint)(**{k: _decode(hints[k], v) for k, v in data.items()})
    if hint is Path:
        return Path(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        if (number := number_from_json(data)) is None:
            raise ValueError("expected a number, found a whole number that is too large")
        return number
    if isinstance(hint, type) and not isinstance(data, hint):
        raise ValueError(f"expected {hint.__name__}, found {data!r}")
    return data
