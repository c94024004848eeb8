"""What stages say about models and engines: before an export, and for the command `inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from yolotrt_core.types import PRECISIONS, EngineSpec, Precision, TensorSpec

# `dangerous`: it can run code when another tool loads the file. `unknown`: of code that yolotrt does not know.
NameStatus = Literal["allowed", "unknown", "dangerous"]


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Properties of a model before its export.

    Attributes:
        imgsz: (height, width) of the model's own input, used where `--imgsz` is not given.
        fixed_size: whether the ONNX will have a fixed height and width even for a dynamic request; then only the batch
            varies unless the user gives a profile.
        precision: precision of the model itself where it is below float32, which its engine then has. int8 and fp8
            mean Q/DQ nodes of its own at convolutions.
    """

    imgsz: tuple[int, int] | None = None
    fixed_size: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, *PRECISIONS[1:]):
            raise ValueError(
                f"`precision` should be one of {', '.join(PRECISIONS[1:])} or None, it is {self.precision!r}"
            )


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product.

    Attributes:
        kind: its class or operator, e.g. `Conv2d`, `Conv`. precision: of its weights as stored, or of its operands.
        parameters: number of weights and biases; those shared with an earlier layer count there.
        operations: per image, 2 for each multiplication with its addition; None: unknown.
    """

    name: str
    kind: str
    precision: str
    parameters: int
    operations: int | None = None


@dataclass(frozen=True, slots=True)
class PickledName:
    """A class or function that the pickle of a file names; it was neither imported nor called."""

    name: str
    status: NameStatus


@dataclass(frozen=True, slots=True)
class Description:
    """Content of a model or engine file, as far as it is known.

    Attributes:
        format: of the file, for display. task: as in `ModelSpec`, or another one that the file states.
        labels: class names, index is the class id. strides, anchors: as in `ModelSpec`.
        inputs, outputs: as the file states them; empty for a checkpoint.
        size: (height, width) in pixels for which operations are counted.
        parameters: number of trained values, of norms, too.
        operations: as of a `Layer`, of the whole network. layers: in the order in which they run.
        names: what a file's pickle names, in order. facts: for display.
        problem: why the rest is unknown, or why the model cannot be built; empty: nothing is wrong.
    """

    format: str
    task: str | None = None
    labels: tuple[str, ...] = ()
    strides: tuple[int, ...] = ()
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    size: tuple[int, int] | None = None
    parameters: int | None = None
    operations: int | None = None
    layers: tuple[Layer, ...] = ()
    names: tuple[PickledName, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def precisions(self) -> dict[str, int]:
        """Number of layers of each precision, the most frequent first."""
        return dict(Counter(layer.precision for layer in self.layers).most_common())


def describe_engine(spec: EngineSpec) -> Description:
    """Return what an engine's sidecar states; its layers are not in it."""
    model = spec.model
    return Description(
        format=f"engine of `{spec.builder}`, {spec.precision}",
        task=model.task,
        labels=model.labels,
        strides=model.strides,
        anchors=model.anchors,
        inputs=model.inputs,
        outputs=model.outputs,
        facts={**{f"built by {key}": text for key, text in spec.tools.items()}, **model.provenance},
    )
