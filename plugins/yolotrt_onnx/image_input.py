"""The image input of an ONNX file, and the edits that give it the project's form."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.input_shapes import shape_text
from yolotrt_core.types import MIN_SIZE_STEP, BuildRequest
from yolotrt_onnx.graph import tensor_specs
from yolotrt_onnx.graph_edits import remove_unused, rename
from yolotrt_onnx.input_preprocessing import End, Maximum, Order, Preprocessing, find_preprocessing
from yolotrt_onnx.network_stride import network_stride
from yolotrt_onnx.pixel_tracking import Pixels

if TYPE_CHECKING:
    from yolotrt_onnx.options import OnnxSourceOptions

log = logging.getLogger(__name__)

_TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}
_NEW = "yolotrt_images"  # name of the new input while the old one exists
Step = tuple[str, Any, dict[str, Any]]
_SAME = 1e-6  # relative; of factors of 255 / 255 in float32


class ImageInput:
    """The one input of a model, and how it differs from `images` (B, 3, H, W), float32 RGB in 0..1.

    Attributes:
        sizes: (batch, height, width), None where free.
        is_last: channels last, as in TensorFlow. dtype: NumPy's.
        maximum: the largest value the file expects. order: of its channels; see `read_preprocessing`.
    """

    def __init__(self, model: ModelProto) -> None:
        inputs = list(model.graph.input)
        shown = ", ".join(f"`{s.name}` {s.dtype} {shape_text(s.shape)}" for s in tensor_specs(inputs)) or "none"
        refusal = UsageError(
            f"expected one input, float or uint8 images (batch, 3, height, width), found {shown}",
            hint="export it again with such an input: one tensor of colour images, with a batch, in float32, float16 "
            "or uint8",
        )
        if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in _TYPES:
            raise refusal
        self.model, self.value = model, inputs[0]
        dims = [d.dim_value if d.HasField("dim_value") else None for d in self.value.type.tensor_type.shape.dim]
        if len(dims) != 4 or 3 not in (dims[1], dims[3]):
            raise refusal
        self.is_last = dims[1] != 3
        height, width = dims[1:3] if self.is_last else dims[2:4]
        self.sizes = (dims[0], height, width)
        self.dtype: Any = _TYPES[self.value.type.tensor_type.elem_type]
        self.maximum: Maximum = 1
        self.order: Order = "rgb"

    @property
    def is_free(self) -> bool:
        """Whether height or width is dynamic."""
        return None in self.sizes[1:]

    @property
    def is_plain(self) -> bool:
        """Whether the file expects float RGB in 0..1."""
        return (self.maximum, self.order) == (1, "rgb")

    @property
    def is_centred(self) -> bool:
        """Whether the graph adds or subtracts something from the image before its network."""
        return any(abs(shift) > _SAME for end in self._preprocessing().starts for shift in end.pixels.shift)

    @property
    def form(self) -> str:
        """What the file expects, such as `uint8 NHWC, BGR, 0..255`."""
        return f"{np.dtype(self.dtype).name} {self._axes}, {self.order.upper()}, 0..{self.maximum}"

    def refuse_other(self, request: BuildRequest) -> None:
        """Check that the file supports the requested sizes."""
        asked = (request.batch, request.height, request.width)
        if request.dynamic and None not in self.sizes:
            raise UsageError(
                f"the file fixes its input to {_sizes(self.sizes)}, but a dynamic engine was requested",
                hint="export the ONNX with free dimensions, or build without `--dynamic` and `--profile`",
            )
        batch = (None if request.dynamic else asked[0], *asked[1:])
        for fixed, requested in zip(self.sizes, batch, strict=True):
            if fixed is not None and requested is not None and fixed != requested:
                height, width = (fixed or want for fixed, want in zip(self.sizes[1:], asked[1:], strict=True))
                raise UsageError(
                    f"the file is for batch x height x width {_sizes(self.sizes)}, but {_sizes(asked)} was requested",
                    hint=f"pass `--batch {self.sizes[0] or asked[0]} --imgsz {height},{width}`",
                )

    def read_preprocessing(self, options: OnnxSourceOptions) -> None:
        """Find out which values and which order of channels the file expects, and log both.

        Constants that scale the image determine its range. Where the graph swaps channels, its input is BGR, since
        YOLOv5 computes with RGB. Options take precedence.

        Raises:
            UsageError: the graph leaves it open, and no option decides; names the node.
        """
        found = self._preprocessing()
        if options.range == "auto":
            self.maximum = found.maximum(self.value.type.tensor_type.elem_type)
        else:
            self.maximum = 255 if options.range == "255" else 1
        if self.maximum == 1 and self.dtype == np.uint8:
            raise UsageError("`--onnx-range 1` does not fit the file's input of type uint8", hint="pass 255")
        found.refuse_clips(self.maximum)
        self.order = found.order() if options.order == "auto" else options.order
        if not self.is_plain:
            log.info("the file expects images as %s; the engine takes the usual ones", self.form)
            if options.order == "auto" and self.order == "bgr":
                log.info("the graph swaps red and blue; if its input is RGB nevertheless, pass `--onnx-order rgb`")

    def size_step(self) -> int:
        """Return the step of height and width: where they are free the network's stride, and at least upstream's."""
        if not self.is_free:  # the file's own size is right
            return 1
        return max(network_stride(self.model, self.value.name, self._axes), MIN_SIZE_STEP)

    def of(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """Convert images (B, 3, H, W), float32 RGB in 0..1, to the file's order, range, layout and type."""
        values = images[:, ::-1] if self.order == "bgr" else images
        if self.maximum != 1:
            values = values * np.float32(self.maximum)
        if self.dtype == np.uint8:
            values = np.rint(values)
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if self.is_last else values, self.dtype)

    def representable(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round images in 0..1 to bytes where the file's type would round them otherwise."""
        if self.maximum == 1 or self.dtype == np.float32:
            return images
        rounded: NDArray[np.float32] = np.rint(images * np.float32(255)) / np.float32(255)
        return rounded

    def become_images(self, request: BuildRequest) -> None:
        """Replace the input by `images` (B, 3, H, W), float32 RGB in 0..1, with the request's sizes where free.

        Where the file preprocesses whole images, the network reads `images` directly, and the file's nodes before it
        disappear. Elsewhere, nodes convert `images` to what the file expects.
        """
        given, found = self.value.name, self._preprocessing()
        if not self.is_plain and _starts_with_images(found):
            self.value.name = _NEW
            for end in (*found.starts, *found.shapes):
                self._feed(end)
            remove_unused(self.model)
        else:
            whole = Pixels(self._axes, (0, 1, 2), (1.0,) * 3, (0.0,) * 3, self.value.type.tensor_type.elem_type)
            steps = self._steps(whole)
            if steps:
                rename(self.model, {given: "images_0"})
                self.value.name = _NEW
                self._insert(steps, "images_0")
        rename(self.model, {self.value.name: "images"})
        size = [
            fixed or requested for fixed, requested in zip(self.sizes[1:], (request.height, request.width), strict=True)
        ]
        shape: list[int | str] = [self.sizes[0] or request.batch, 3, *size]
        if request.dynamic:
            named = ("batch", "height", "width")
            free = [name if fixed is None else fixed for fixed, name in zip(self.sizes, named, strict=True)]
            shape = [free[0], 3, *free[1:]]
        self.value.CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, shape))

    @property
    def _axes(self) -> str:
        return "NHWC" if self.is_last else "NCHW"

    def _preprocessing(self) -> Preprocessing:
        return find_preprocessing(self.model, self.value.name, self.value.type.tensor_type.elem_type, self._axes)

    def _feed(self, end: End) -> None:
        """Let a node read images instead of the file's preprocessed ones."""
        shape_only = end.node.op_type in ("Shape", "Size")
        name = f"images_for_{end.tensor}" + ("_shape" if shape_only else "")
        steps = [step for step in self._steps(end.pixels) if not shape_only or step[0] == "Transpose"]
        if not any(name in node.output for node in self.model.graph.node):
            self._insert(steps, name)
        for index, read in enumerate(end.node.input):
            if read == end.tensor:
                end.node.input[index] = name if steps else _NEW

    def _steps(self, pixels: Pixels) -> list[Step]:
        """Return operators, with their constant and attributes, from images to a tensor of the file."""
        steps: list[Step] = []
        order = [2 - source if self.order == "bgr" else source for source in pixels.channels]
        if order != [0, 1, 2]:
            steps.append(("Gather", np.array(order, np.int64), {"axis": 1}))
        scale, shift = np.array(pixels.scale) * self.maximum, np.array(pixels.shift)
        for operator, values, neutral in (("Mul", scale, 1.0), ("Add", shift, 0.0)):
            if np.abs(values - neutral).max() > _SAME:
                even = np.ptp(values) == 0
                steps.append((operator, np.float32(values[0] if even else values.reshape(1, 3, 1, 1)), {}))
        if pixels.dtype != TensorProto.FLOAT:
            if pixels.dtype == TensorProto.UINT8:
                steps.append(("Round", None, {}))
            steps.append(("Cast", None, {"to": pixels.dtype}))
        if pixels.axes != "NCHW":
            steps.append(("Transpose", None, {"perm": ["NCHW".index(axis) for axis in pixels.axes]}))
        return steps

    def _insert(self, steps: list[Step], result: str) -> None:
        """Insert nodes at the start that compute `result` from the new input."""
        graph, read = self.model.graph, _NEW
        for index, (operator, constant, attributes) in enumerate(steps):
            name = result if index + 1 == len(steps) else f"{result}_{operator.lower()}"
            inputs = [read]
            if constant is not None:
                inputs.append(f"{result}_{operator.lower()}_by")
                graph.initializer.append(numpy_helper.from_array(np.asarray(constant), inputs[1]))
            node = helper.make_node(operator, inputs, [name], name=f"{result}_{operator.lower()}", **attributes)
            graph.node.insert(index, node)
            read = name


def _starts_with_images(found: Preprocessing) -> bool:
    """Check whether everything that reads the image reads all of it, in whatever order and layout."""
    read = (*found.starts, *found.shapes)
    whole = all(len(e.pixels.axes) == 4 and sorted(e.pixels.channels) == [0, 1, 2] for e in read)
    return whole and bool(found.starts) and not found.inside


def _sizes(sizes: tuple[int | None, ...]) -> str:
    return " x ".join("any" if size is None else str(size) for size in sizes)
