"""Base classes of stages: a plugin's stage inherits from the class of its kind.

Rules that hold for every stage:
- Constructing a stage, reading its attributes and calling `available` or `fingerprint` imports no
  framework: heavy imports are inside the method that does the work.
- Work methods write only under `out`.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from yolotrt_core.console.text import not_installed

# Frames and sessions belong to the same contract.
from yolotrt_core.media.frames import DeviceFrame as DeviceFrame, Frame as Frame, Nv12Frame as Nv12Frame
from yolotrt_core.plugin.description import Description, SourceInfo as SourceInfo, describe_engine
from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.plugin.sessions import DeviceProgram as DeviceProgram, Session as Session
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
    """Whether a stage works on this machine; if not, the reason and the command that fixes it."""

    ok: bool
    reason: str = ""
    install: str = ""


class SideCache(Protocol):
    """Files a stage keeps between runs to be faster: timing caches, compiled kernels.

    They may never change what the output means, so they are in no key. `material` states what a
    file is valid for (library version, GPU, source digest); another material is another file.
    """

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        """Return what was saved last for this name and material, or None."""

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        """Keep `data`, replacing what was there."""


class Stage(abc.ABC):
    """Base of all kinds.

    Attributes:
        name: lower case, unique among all stages, not a command's name; starts the flags and names the recipe table.
        title: of its options in `--help-all`; None: made of name and kind.
        stage_version: raised by the author when the output changes and no text in `sources` does.
        sources: dotted names of the packages and modules that the work runs through, and files as `package/file`,
            whose text enters the cache key; default: the top-level package of the class. What the core contributes
            is in the key already.
        session_sources: as `sources`, of what `open` or `open_source` and the session run through; None: `sources`.
            They enter the keys of what sessions answer (parity, gate, predictions, timings) and not that of an engine,
            so that an edit there evaluates again and rebuilds nothing.
        Options: frozen dataclass of its options.
        requires: modules that the work imports; `available` looks for them.
        install: command that installs them; default: `pip install` and the missing modules.
        tools: modules whose versions can change the output, for `fingerprint`; None: `requires`.
    """

    name: str
    title: str | None = None
    stage_version: int = 1
    session_sources: tuple[str, ...] | None = None
    Options: type = NoOptions
    requires: tuple[str, ...] = ()
    install: str = ""
    tools: tuple[str, ...] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (type(self).__module__.partition(".")[0],)

    def available(self) -> Availability:
        """Return whether the stage works on this machine, without importing its framework."""
        return tools_available(self.requires, self.install)

    def fingerprint(self, options: Any) -> Mapping[str, str]:
        """Return the versions of the tools that can change the output, read from package metadata."""
        return tool_versions(self.requires if self.tools is None else self.tools)

    def check_options(self, options: Any) -> None:  # noqa: B027 - most stages accept all options of valid types
        """Raise a UsageError for options that cannot be used together, before any stage of a build runs."""


class Exporter(Stage):
    """Framework model -> ONNX.

    Attributes:
        runs_sources: whether `open_source` works.
    """

    runs_sources: bool = False

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return properties of a model before its export.

        Called once for each build, so it must be quick and parse the file at most once. `export` reports what is wrong
        with a file.
        """
        return SourceInfo()

    def describe(self, source: ModelSource) -> Description:
        """Return what is in a model, for `inspect`; nothing is written, and nothing of the file is executed.

        Of a file that cannot be exported, whatever can be read of it, and the reason as `problem`.
        """
        return Description(self.title or self.name)

    @abc.abstractmethod
    def export(self, source: ModelSource, request: BuildRequest, options: Any, out: Path) -> ModelSpec:
        """Write `out/model.onnx` and `out/reference.npz`; return the spec of the ONNX.

        `request` is precision fp32 and has no profiles, so that all of them share the export; if
        it is dynamic, batch, height and width are the first profile's optimum.

        The ONNX has float32 input `images`, see `ModelSpec.inputs`, and is valid for `onnx.checker`.
        Its metadata_props hold `stride`, `names`, `task`, `imgsz` and provenance.
        `reference.npz` holds a fixed input under `images` and the framework's own output for it
        under each output's name, float32: the ONNX is compared with it. A framework that
        computes with integers also states there, under `tolerance`, how far the ONNX may be.
        """

    def open_source(self, source: ModelSource, request: BuildRequest, options: Any) -> Session:
        """Return the model in its own framework, as a session of the request's shape or profiles.

        The spec's builder is the exporter's name.
        """
        raise NotImplementedError


class Pass(Stage):
    """ONNX -> ONNX.

    Attributes:
        order: passes run from low to high: 10 simplify, 50 the one that sets the precision. A pass below 50 is shared
            by all precisions: it gets a request of precision fp32 without profiles. From 50 on it gets the precision
            of the build.
        needs_calibration: whether `apply` needs ranges.
        quantizes: whether `layers` works, for layer sensitivity and mixed precision. The options then have the fields
            `keep` (str or None), names of layers that stay in floating point, separated by commas, and `base`, of which
            `fp32` leaves everything else as precise as the model.
    """

    order: float
    needs_calibration: bool = False
    quantizes: bool = False

    @abc.abstractmethod
    def applies(self, request: BuildRequest, options: Any) -> bool:
        """Return whether a build of this request runs the pass."""

    @abc.abstractmethod
    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Any, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        """Write `out/model.onnx`; return its spec and facts for the record (node counts ...)."""

    def layers(self, model: OnnxModel, options: Any) -> tuple[str, ...]:
        """Return the names of the layers it would quantize, in the graph's order; each fits `keep`."""
        raise NotImplementedError


class Calibrator(Stage):
    """ONNX and images -> the range of each activation.

    Attributes:
        needs_images: whether it reads images; without, `batches` is empty.
        default_for: precisions that it calibrates unless the user names a calibrator.
    """

    needs_images: bool = True
    default_for: frozenset[Precision] = frozenset()

    @abc.abstractmethod
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
            batches: float32 (b, C, H, W) or (b, H, W, C) as the model's input, 0..1, letterboxed; consumed
                once, one in memory.
        """


@dataclass(frozen=True, slots=True)
class OnnxContents:
    """Inputs and outputs that an ONNX file declares, in their order, and its metadata."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]


class Builder(Stage):
    """Typed ONNX -> engine, and engine -> session.

    Attributes:
        engine_file: name of the engine under `out`, e.g. `model.engine`.
        precisions: precisions that it builds.
        priority: the available builder of the highest is the default to build and, where it runs, to run with.
        is_reference_runtime: whether its engine is the plain ONNX file, and its sessions check every export and stand
            in for engines that do not run on this machine; exactly one installed builder is one.
    """

    engine_file: str
    precisions: frozenset[Precision]
    priority: float = 0
    is_reference_runtime: bool = False

    def runnable(self) -> Availability:
        """Return whether an engine of this builder runs on this machine (a GPU, a driver)."""
        return self.available()

    def preflight(self, request: BuildRequest, options: Any) -> None:
        """Raise before any work starts if the installed library cannot build this request.

        Raises:
            StageError: states what the library lacks and what to do instead.
        """

    def takes_ranges(self, request: BuildRequest, options: Any) -> bool:
        """Return whether `build` takes a calibration and an ONNX without Q/DQ nodes."""
        return False

    def rounds_fp32(self, request: BuildRequest, options: Any) -> bool:
        """Return whether the library rounds fp32 operands against the options; passes then get `exact_fp32`."""
        return False

    def place(self, options: Any) -> Mapping[str, str]:
        """Return what runs an engine on this machine (GPU, driver, library) if its output may differ on another.

        Predictions and gate results hold for this alone.
        """
        return {}

    @abc.abstractmethod
    def build(
        self,
        model: OnnxModel,
        calibration: Calibration | None,
        request: BuildRequest,
        options: Any,
        out: Path,
        side_cache: SideCache,
    ) -> EngineSpec:
        """Write `out/<engine_file>` and return its spec.

        May write `out/facts.json`, one JSON object of figures for the record (kernel counts ...).
        """

    @abc.abstractmethod
    def open(self, engine: Path, spec: EngineSpec, options: Any, side_cache: SideCache) -> Session:
        """Load an engine of this builder.

        Raises:
            StageError: it does not run on this machine, with the reason.
        """

    def describe(self, engine: Path, spec: EngineSpec) -> Description:
        """Return what is in an engine, for `inspect`, also where it does not run; by default what the sidecar states.

        Without layers, those of the ONNX that the engine was built from are shown where it is still in the store.
        """
        return describe_engine(spec)

    def contents(self, onnx: Path) -> OnnxContents | None:
        """Read what an ONNX file declares, without loading the network; None where that is not possible.

        Raises:
            StageError: it is not an ONNX file.
        """
        return None


class Postprocessor(Stage):
    """Raw network output -> boxes. Pure: the same input gives the same output, no files.

    Attributes:
        heads: the values of `ModelSpec.head` that it decodes.
        columns_before_classes: columns of the output before those of the classes; None: the output is laid out
            otherwise, and the number of labels is not checked.
        decodes_on_device: whether `device_program` works.
    """

    heads: frozenset[str]
    columns_before_classes: int | None = None
    decodes_on_device: bool = False

    @abc.abstractmethod
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
            UsageError: the output does not fit the head (name, rank, width, dtype).
        """

    def device_program(self, spec: ModelSpec) -> DeviceProgram:
        """Return the device twin of `decode` for this network."""
        raise NotImplementedError


def tools_available(modules: Iterable[str], install: str = "") -> Availability:
    """Return whether every module can be imported, without importing it.

    Args:
        modules: names as `import` has them.
        install: the command that installs them; default: `pip install` and the missing modules.
    """
    missing = [module for module in modules if not _is_installed(module)]
    if not missing:
        return Availability(True)
    return Availability(False, not_installed(missing), install or f"pip install {' '.join(missing)}")


def tool_versions(modules: Iterable[str]) -> dict[str, str]:
    """Return each installed module with the version of the distribution that contains it."""
    return {module: version for module in modules if (version := _version(module)) is not None}


def _is_installed(module: str) -> bool:
    try:
        spec = util.find_spec(module)
        return spec is not None and spec.origin is not None  # a namespace folder is not an installed tool
    except (ModuleNotFoundError, ValueError):  # its package is missing, or it is set to None
        return False


@functools.cache
def _version(module: str) -> str | None:
    if not _is_installed(module):
        return None
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:  # `tensorflow` of `tensorflow-cpu`; reading every list of files is slow
        names = metadata.packages_distributions().get(module.partition(".")[0], ())
        return metadata.version(names[0]) if names else None
