"""What each kind of stage must offer. A plugin implements these; only defaults need inheriting.

Rules that hold for every stage:
- Constructing a stage, reading its attributes and calling `available` or `fingerprint` imports no
  framework: heavy imports happen inside the method that does the work.
- Work methods write only under `out` and import their tool themselves.
- `sources` names the packages and modules that the *work* runs through, as a rule the plugin's own package: an edit
  there must rebuild. What the core contributes to every stage is in the key already (`code_digest.STAGE`).
- `stage_version` is raised by the author when the output changes for another reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

# What an engine is once it is open belongs to the same contract.
from yolotrt_core.media.frames import DeviceFrame as DeviceFrame, Frame as Frame, Nv12Frame as Nv12Frame
from yolotrt_core.plugin.sessions import (
    DecodingSession as DecodingSession,
    DetectingSession as DetectingSession,
    DeviceProgram as DeviceProgram,
    PageLockingSession as PageLockingSession,
    Session as Session,
    TimedSession as TimedSession,
)
from yolotrt_core.types import (
    BuildRequest,
    Calibration,
    Detections,
    EngineSpec,
    Geometry,
    Json,
    ModelSource,
    ModelSpec,
    OnnxModel,
    Precision,
    Selection,
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Names every stage of a kind writes and reads under `out`, so that stages of different plugins meet.
ONNX_FILE = "model.onnx"
REFERENCE_FILE = "reference.npz"
RANGES_FILE = "ranges.json"


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether this machine can do something; if not, why, and the command that would mend it."""

    ok: bool
    reason: str = ""
    install: str = ""


class SideCache(Protocol):
    """Files a stage keeps between runs to be faster: timing caches, compiled kernels.

    They may never change what the output means, so they are in no key. `material` says what a
    file is valid for (library version, GPU, source digest); another material is another file.
    """

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        """Return what was saved last for this name and material, or None."""

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        """Keep `data`, replacing what was there."""


@runtime_checkable
class Stage(Protocol):
    """What all kinds share."""

    @property
    def name(self) -> str:
        """Lower case, unique among all stages, no command's name; starts the flags and names the recipe table."""

    @property
    def stage_version(self) -> int: ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Dotted names of the modules, and files as `package/file`, whose text enters the cache key."""

    @property
    def Options(self) -> type: ...  # noqa: N802 - a class, read through the stage

    def available(self) -> Availability:
        """Say whether the stage can work here, without importing its framework."""

    def fingerprint(self, options: Any) -> Mapping[str, str]:
        """Name the tools whose version can change the output, read from package metadata."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Properties of a model before its export.

    Attributes:
        imgsz: (height, width) the model is made for, used where `--imgsz` is not given.
        fixed_size: whether the ONNX will take one height and width even for a dynamic request; then only the batch
            varies unless the user gives a profile.
        precision: precision of the model itself where it is below float32, which its engine then has. int8 and fp8
            mean Q/DQ nodes of its own at convolutions.
    """

    imgsz: tuple[int, int] | None = None
    fixed_size: bool = False
    precision: Precision | None = None


class Exporter(Stage, Protocol):
    """Framework model -> ONNX."""

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return what is known of a model before its export; an exporter that knows nothing may lack the method.

        Called once for each build, so it must be quick and parse the file at most once. What is wrong with a file
        is for `export` to say.
        """
        return SourceInfo()

    def export(self, source: ModelSource, request: BuildRequest, options: Any, out: Path) -> ModelSpec:
        """Write `out/model.onnx` and `out/reference.npz`; return what the ONNX holds.

        `request` is precision fp32 and has no profiles, so that all of them share the export; if
        it is dynamic, batch, height and width are the first profile's optimum.

        The ONNX has float32 input `images`, (B, 3, H, W) or (B, H, W, 3), and is valid for `onnx.checker`.
        Its metadata_props hold `stride`, `names`, `task`, `imgsz` and provenance.
        `reference.npz` holds a fixed input under `images` and the framework's own output for it
        under each output's name, float32: the pipeline compares the ONNX with it. A framework that
        computes with integers also states there, under `tolerance`, how far the ONNX may be.
        """


@runtime_checkable
class CheckedOptions(Protocol):
    """What a stage of any kind may offer beside `Stage`: to look at its options before any stage of a build runs."""

    def check_options(self, options: Any) -> None:
        """Raise a UsageError for options that it cannot work with, before any stage of a build runs."""


class SessionSources(Protocol):
    """What a stage that opens sessions may offer beside `Stage`: to tell what runs an engine from what makes it."""

    @property
    def session_sources(self) -> tuple[str, ...]:
        """As `sources`, of all that `open` or `open_source` and the session run through; without, `sources` are.

        They enter the keys of what sessions answer (parity, verdicts, predictions, speeds) and not that of an
        engine, so that an edit there measures again and rebuilds nothing.
        """


@runtime_checkable
class SourceRunner(Protocol):
    """What an exporter may offer beside `Exporter`: to run a model in its own framework."""

    def open_source(self, source: ModelSource, request: BuildRequest, options: Any) -> Session:
        """Return the model as a session of the request's shape or profiles.

        The spec's builder is the exporter's name.
        """


class Pass(Stage, Protocol):
    """ONNX -> ONNX."""

    @property
    def order(self) -> int:
        """Passes run from low to high: 10 simplify, 50 the one that sets the precision.

        A pass below 50 serves every precision: it sees a request of precision fp32 without
        profiles. From 50 on it sees the precision that was asked for.
        """

    @property
    def needs_calibration(self) -> bool: ...

    def applies(self, request: BuildRequest, options: Any) -> bool:
        """Say whether a build of this request runs the pass."""

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Any, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        """Write `out/model.onnx`; return its spec and facts for the record (node counts ...)."""


@runtime_checkable
class QuantizingPass(Protocol):
    """What a pass that quantizes may offer beside `Pass`: layer by layer, for sensitivity and mixed precision.

    Its options then have the fields `keep` (str or None), names of layers that stay in floating point,
    separated by commas, and `base`, of which `fp32` leaves everything else as precise as the model.
    """

    def layers(self, model: OnnxModel, options: Any) -> tuple[str, ...]:
        """Return the names of the layers it would quantize, in the graph's order; each fits `keep`."""


class Calibrator(Stage, Protocol):
    """ONNX and images -> the range of each activation."""

    @property
    def needs_images(self) -> bool:
        """Whether it looks at images; one that lacks the attribute does. Without, `batches` is empty."""

    def calibrate(
        self,
        model: OnnxModel,
        batches: Iterator[NDArray[np.float32]],
        request: BuildRequest,
        options: Any,
        out: Path,
    ) -> str:
        """Write `out/ranges.json` with `yolotrt_core.calibration.ranges.write_ranges`; return the method's name.

        Args:
            model: float32. Its batch need not be that of `batches`.
            batches: float32 (b, 3, H, W) or (b, H, W, 3) as the model's input, RGB 0..1, letterboxed; consumed
                once, one in memory.
        """


@runtime_checkable
class DeviceDecoding(Protocol):
    """What a postprocessor may offer beside `Postprocessor`."""

    def device_program(self, spec: ModelSpec) -> DeviceProgram:
        """Return the device twin of `decode` for this network."""


@runtime_checkable
class RangesBuilder(Protocol):
    """What a builder may offer beside `Builder`: to be given ranges instead of Q/DQ nodes."""

    def takes_ranges(self, request: BuildRequest, options: Any) -> bool:
        """Say whether this build wants ranges; `build` then gets a calibration and an ONNX without Q/DQ."""


@runtime_checkable
class RoundingBuilder(Protocol):
    """What a builder may offer beside `Builder`, if its library ignores a wish for exact fp32."""

    def rounds_fp32(self, request: BuildRequest, options: Any) -> bool:
        """Say whether fp32 operands would be cut short against the options; passes then see `exact_fp32`."""


class Builder(Stage, Protocol):
    """Typed ONNX -> engine, and engine -> session."""

    engine_file: ClassVar[str]  # file name under `out`, e.g. "model.engine"

    @property
    def precisions(self) -> frozenset[Precision]: ...

    @property
    def priority(self) -> int:
        """The highest available one is the default to build and, where it can run, to run with."""

    def runnable(self) -> Availability:
        """Say whether an engine of this builder can run here (a GPU, a driver)."""

    def preflight(self, request: BuildRequest, options: Any) -> None:
        """Raise before any work starts if the installed library cannot build this request.

        Raises:
            StageError: says what the library lacks and what would do instead.
        """

    def build(
        self,
        model: OnnxModel,
        calibration: Calibration | None,
        request: BuildRequest,
        options: Any,
        out: Path,
        side_cache: SideCache,
    ) -> EngineSpec:
        """Write `out/<engine_file>` and return what a runner must know of it.

        May write `out/facts.json`, one JSON object of figures for the record (kernel counts ...).
        """

    def open(self, engine: Path, spec: EngineSpec, options: Any, side_cache: SideCache) -> Session:
        """Load an engine made by this builder.

        Raises:
            StageError: it does not run here, with the reason.
        """


@dataclass(frozen=True, slots=True)
class OnnxContents:
    """What an ONNX file declares of itself: its tensors in their order, its metadata."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]


@runtime_checkable
class OnnxReader(Protocol):
    """What the builder that checks exports may offer beside `Builder`: to tell what an ONNX file declares."""

    def contents(self, onnx: Path) -> OnnxContents | None:
        """Read names, types and shapes, without loading the network; None where that is not possible.

        Raises:
            StageError: it is no ONNX file.
        """


@runtime_checkable
class PlacedBuilder(Protocol):
    """What a builder may offer beside `Builder`, if its engines may answer otherwise on another machine."""

    def place(self, options: Any) -> Mapping[str, str]:
        """Name what runs an engine here (GPU, driver, library): predictions and verdicts hold for this alone."""


class Postprocessor(Stage, Protocol):
    """Raw network output -> boxes. Pure: the same input gives the same output, no files."""

    @property
    def heads(self) -> frozenset[str]:
        """The `ModelSpec.head` values it decodes."""

    def decode(
        self,
        raw: Mapping[str, NDArray[Any]],
        spec: ModelSpec,
        geometry: Sequence[Geometry],
        selection: Selection,
        options: Any,
    ) -> list[Detections]:
        """Turn a batch's raw output into one Detections per image, in source-image pixels.

        Raises:
            UsageError: the output is not what the head promises (name, rank, width, dtype).
        """
