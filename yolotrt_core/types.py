"""Values passed between stages. All but arrays round-trip through JSON, see `serialization`."""

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
# Memory layout of a network's input: channels first (PyTorch) or last (TensorFlow).
Layout = Literal["nchw", "nhwc"]
Task = Literal["detect", "segment", "classify"]
# Channels of a network's input in their order: one of grey, colors, colors with alpha.
ChannelOrder = Literal["grey", "rgb", "rgba", "bgra", "argb", "abgr"]
_USUAL_ORDERS: dict[object, ChannelOrder] = {1: "grey", 3: "rgb", 4: "rgba"}  # by the number of channels
CHANNEL_COUNTS = (1, 3, 4)
# Placement of an image in the network input: the whole image with padding, or its central square.
Fit = Literal["letterbox", "crop"]
_FITS: dict[Task, Fit] = {"detect": "letterbox", "segment": "letterbox", "classify": "crop"}
MIN_SIZE_STEP = 32  # pixels; upstream rounds every size to multiples of it, or of the largest stride above it


def fit_of(task: Task) -> Fit:
    """Return how images become the input of a network."""
    return _FITS[task]


def layout_of(shape: Sequence[object]) -> Layout:
    """Return the layout of an input shape; a dynamic dimension may be anything but 1, 3 or 4.

    The shape is sufficient: height and width are multiples of the size step, so only the channel axis is that small.
    """
    is_last = len(shape) == 4 and shape[3] in CHANNEL_COUNTS and shape[1] not in CHANNEL_COUNTS
    return "nhwc" if is_last else "nchw"


def with_channels(batch: T, height: T, width: T, layout: Layout, channels: int = 3) -> tuple[T | int, ...]:
    """Return the input shape, (B, channels, H, W) or (B, H, W, channels); dimensions are numbers or names."""
    return (batch, height, width, channels) if layout == "nhwc" else (batch, channels, height, width)


def channels_of(shape: Sequence[object]) -> object:
    """Return the size of the channel axis of an input shape of four dimensions; None of another one."""
    return None if len(shape) != 4 else shape[3] if layout_of(shape) == "nhwc" else shape[1]


def channel_count(order: ChannelOrder) -> int:
    """Return the number of channels."""
    return 1 if order == "grey" else len(order)


def without_channels(shape: Sequence[T], layout: Layout) -> tuple[T, T, T]:
    """Return (batch, height, width) of an input shape of four dimensions."""
    first = 1 if layout == "nhwc" else 2
    return shape[0], shape[first], shape[first + 1]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """File or folder of a model, with its digest.

    Attributes:
        path: the file, or the folder of a SavedModel.
        sha256: digest of the file, or of a folder's sorted relative names and contents.
        name: short name for display and output folders, e.g. `yolov5n`.
        imgsz: recommended (height, width) of a known source, else None; `--imgsz` takes precedence.
    """

    path: Path
    sha256: str
    name: str
    imgsz: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, NumPy dtype and shape of a tensor; a `str` dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Framework-independent description of a network.

    Attributes:
        inputs: named `images`, (B, C, H, W) or (B, H, W, C) in 0..1 with C = 1, 3 or 4; see `layout_of`.
        outputs: for YOLOv5 one tensor `output0`, (B, N, 5 + C): cx, cy, w, h in input pixels,
            objectness, class scores in 0..1; rows ordered by level, anchor, y, x. For classification (B, C), logits.
        labels: class names, index is the class id.
        strides: pixels per cell of each detection level, finest first; empty if not known: `network_stride` suffices.
        head: kind of head, selects the postprocessor, e.g. `yolov5`.
        anchors: per level, (width, height) of each anchor in input pixels; empty if the head has none.
        provenance: informational facts about the origin.
        task: what the network is for, and so what its results hold: `segment` has masks, `classify` scores of all
            classes and no boxes.
        network_stride: pixels per cell of the coarsest feature map, whether or not it has a detection level.
        order: of the channels of the input; None: grey, RGB or RGBA, by their number.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    strides: tuple[int, ...] = ()
    head: str = "yolov5"
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    task: Task = "detect"
    network_stride: int = 1
    order: ChannelOrder | None = None

    @property
    def channel_order(self) -> ChannelOrder:
        """Order of the channels of its input."""
        return self.order or _USUAL_ORDERS.get(channels_of(self.inputs[0].shape), "rgb")

    @property
    def size_step(self) -> int:
        """Height and width of the input are multiples of this."""
        return max(self.network_stride, *self.strides, 1)

    @property
    def layout(self) -> Layout:
        """Layout of the input."""
        return layout_of(self.inputs[0].shape)

    @property
    def has_masks(self) -> bool:
        """Whether its results hold masks."""
        return self.task == "segment"

    @property
    def has_boxes(self) -> bool:
        """Whether its results hold boxes, and not the scores of all classes."""
        return self.task != "classify"

    @property
    def fit(self) -> Fit:
        """How images become its input."""
        return fit_of(self.task)


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file, its digest and its model spec."""

    path: Path
    sha256: str
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Calibration:
    """Activation ranges of a network: the file `ranges.json`."""

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
    """Requested precision and input shapes. Height and width in pixels, multiples of the size step.

    `profiles` is empty for a static model and has at least one entry with `dynamic`. `exact_fp32`: a pass must rewrite
    fp32 products that the runtime would compute with truncated operands.
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
    """Engine spec, stored as the sidecar `<engine file>.json`.

    Attributes:
        model: the network as the engine exposes it (names, dtypes, shapes, labels, strides).
        precision: lowest precision of the convolutions.
        builder: name of the builder that built the engine and can open it.
        tools: versions of the tools that built it, e.g. {"module": "tensorrt_rtx", "version": "1.7.1.116"}.
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
    """Placement of a source image in the network input by the letterbox.

    Attributes:
        source: (height, width) of the image in pixels.
        target: (height, width) of the network input in pixels.
        scale: resized pixels per source pixel, the same on both axes.
        pad: real-valued (left, top) padding in input pixels, subtracted from boxes.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    scale: float
    pad: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Selection:
    """Thresholds that select detections from the network's candidates.

    Attributes:
        conf: confidence threshold, exclusive, 0..1. iou: IoU threshold for NMS, exclusive, 0..1.
        multi_label: a box may have several classes over `conf`. agnostic: class-agnostic NMS.
        classes: class ids to keep; empty: all. max_det: maximum detections per image.
    """

    conf: float = 0.25
    iou: float = 0.45
    multi_label: bool = False
    agnostic: bool = False
    classes: tuple[int, ...] = ()
    max_det: int = 300


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Instance masks of one image, each a packed bitmap of a window: a tenth of a byte array over the image.

    Attributes:
        size: (height, width) of the source image in pixels.
        windows: int32 (M, 4), x1 y1 x2 y2: the pixels x1 <= x < x2, y1 <= y < y2 of each bitmap; no pixel outside its
            window belongs to an object.
        packed: per object uint8 (y2 - y1, ceil((x2 - x1) / 8)), most significant bit first, as `numpy.packbits`.
    """

    size: tuple[int, int]
    windows: NDArray[np.int32]
    packed: tuple[NDArray[np.uint8], ...]

    def __len__(self) -> int:
        return len(self.packed)

    def window(self, index: int) -> NDArray[np.bool_]:
        """Return the bitmap of an object's window, bool (y2 - y1, x2 - x1)."""
        import numpy as np

        x1, _, x2, _ = self.windows[index].tolist()
        return np.unpackbits(self.packed[index], axis=1, count=x2 - x1).view(np.bool_)

    def full(self, index: int) -> NDArray[np.bool_]:
        """Return the mask of an object over the whole image, bool (height, width)."""
        import numpy as np

        x1, y1, x2, y2 = self.windows[index].tolist()
        mask = np.zeros(self.size, np.bool_)
        mask[y1:y2, x1:x2] = self.window(index)
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Scores of all classes for one image as a whole.

    Attributes:
        scores: float32 (C,), 0..1, by class id; they add up to 1.
    """

    scores: NDArray[np.float32]

    def top(self, count: int = 5) -> list[int]:
        """Return the class ids with the highest scores, the highest first; of equal ones the lower id."""
        import numpy as np

        ids: list[int] = np.argsort(-self.scores, kind="stable")[:count].tolist()
        return ids


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detected objects of one image, highest score first.

    Attributes:
        boxes: float32 (M, 4), x1 y1 x2 y2 in source-image pixels, clipped to the image.
        scores: float32 (M,), 0..1. class_ids: int64 (M,).
        truncated: number of boxes dropped by `max_det`.
        masks: of a segmentation model, one per box; None of others.
        classes: of a classification model, which has no boxes; None of others.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    truncated: int = 0
    masks: Masks | None = None
    classes: Classes | None = None

    def __len__(self) -> int:
        return len(self.scores)
