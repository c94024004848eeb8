"""Sensitivity of each layer to quantization: the order in which layers return to floating point.

Each layer in turn is quantized in an otherwise float32 network, which runs on a few of the
calibration images, never on evaluation images. The figures of each layer are an artifact of
their own, so that an interrupted measurement resumes.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.calibration.images import digest_of_images
from yolotrt_core.calibration.ranges import read_ranges
from yolotrt_core.console.progress import progress
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.evaluation.agreement import compare_detections
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.inference.detector import Detector
from yolotrt_core.media import images as images
from yolotrt_core.pipeline import executor
from yolotrt_core.pipeline.output_checks import check_pass
from yolotrt_core.pipeline.step import Output, Plan, Step
from yolotrt_core.plugin.options import key_material
from yolotrt_core.plugin.registered import Registered, answering
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE, Session
from yolotrt_core.serialization import from_json, to_json
from yolotrt_core.store import code_digest
from yolotrt_core.store.action import Action, Record
from yolotrt_core.store.code_digest import core_digest
from yolotrt_core.store.store import Store
from yolotrt_core.tuning.sensitivity_options import SensitivityOptions
from yolotrt_core.types import Calibration, Detections, EngineSpec, Json, ModelSpec, OnnxModel, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_FIGURES_FILE = "sensitivity.json"
# Low, because single layers hardly change which boxes of high confidence are found.
_SELECTION = Selection(conf=0.05)


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """Error of quantizing one layer alone.

    Attributes:
        layer: YOLO module, e.g. `model.2.cv1`. error: relative L2 error of the raw output, the mean over its
            columns. agreement: share of boxes (score over 0.05) that match float32, 0..1.
            drift: mean score difference of these. seconds: how long the measurement took.
    """

    layer: str
    error: float
    agreement: float
    drift: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The layers of a network, the most sensitive first.

    Attributes:
        precision: `int8` or `fp8`. images: number of images. from_cache: whether nothing was run.
    """

    precision: str
    layers: tuple[LayerSensitivity, ...]
    images: int
    from_cache: bool


def measure(planned: Plan, *, store: Store, registry: Registry) -> Sensitivity:
    """Measure every layer that a build of this plan would quantize.

    Args:
        planned: a plan of precision int8 or fp8; its steps up to the quantization are run if needed. Without
            calibration images, the bundled one is used.

    Raises:
        UsageError: a precision that quantizes no layers, or a network that is quantized already.
        StageError: a stage failed.
    """
    lowering = lowering_step(planned)
    if lowering is None:
        raise UsageError(
            f"{planned.request.precision} quantizes no layers",
            hint="use int8 or fp8 by Q/DQ nodes",
        )
    before = replace(planned, steps=planned.steps[: planned.steps.index(lowering)])
    results = {r.step.label: r.record for r in executor.run(before, store, registry)}
    options = planned.resolved.options.resolve(SensitivityOptions, "sensitivity")
    files = _images(planned)[: options.images]
    case = _Case(planned, lowering, results, files, store, registry)
    with tempfile.TemporaryDirectory(prefix="yolotrt-") as folder:
        names = case.layers(Path(folder))
        if not names:
            raise UsageError("no layer can be quantized", hint="a model with Q/DQ nodes of its own is built unchanged")
        found, cached = [], True
        with progress("measuring layers", total=len(names)) as bar:
            for number, name in enumerate(names, 1):
                record, from_cache = case.measure_layer(name, names)
                cached &= from_cache
                figures = {k: float(str(record.facts[k])) for k in ("error", "agreement", "drift")}
                found.append(LayerSensitivity(layer=name, seconds=record.seconds, **figures))
                bar.update(completed=number)
    ranked = sorted(found, key=lambda d: (-d.error, d.agreement, -d.drift))
    return Sensitivity(planned.request.precision, tuple(ranked), len(files), cached)


def lowering_step(planned: Plan) -> Step | None:
    """Return the step that quantizes layer by layer, or None."""
    return next((s for s in planned.steps if s.kind == "pass" and s.stage.quantizes), None)


class _RecordingSession(Session):
    """A session that records raw outputs, or compares them with those of another."""

    def __init__(self, session: Session, reference: Sequence[Mapping[str, NDArray[Any]]] | None = None) -> None:
        self._session, self.spec = session, session.spec
        self._reference = iter(reference) if reference is not None else None
        self.outputs: list[Mapping[str, NDArray[Any]]] = []
        self._squares: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        raw = self._session.infer(images)
        if self._reference is None:
            self.outputs.append(raw)
        else:
            for name, expected in next(self._reference).items():
                self._add(name, expected, raw[name])
        return raw

    def _add(self, name: str, expected: NDArray[Any], found: NDArray[Any]) -> None:
        import numpy as np

        axes = tuple(range(expected.ndim - 1))
        wrong = np.square(found - expected, dtype=np.float64).sum(axes)
        size = np.square(expected, dtype=np.float64).sum(axes)
        before = self._squares.get(name, (np.zeros_like(wrong), np.zeros_like(size)))
        self._squares[name] = (before[0] + wrong, before[1] + size)

    @property
    def error(self) -> float:
        """Relative L2 error, the mean over the columns of all outputs.

        Pixel coordinates would dominate the norm of whole rows.
        """
        import numpy as np

        wrong, size = (np.concatenate([np.atleast_1d(s[i]) for s in self._squares.values()]) for i in (0, 1))
        return float(np.sqrt(wrong / np.where(size > 0, size, 1)).mean())

    def close(self) -> None:
        self._session.close()


@dataclass(slots=True)
class _Reference:
    frames: list[NDArray[np.uint8]]
    outputs: list[Mapping[str, NDArray[Any]]]
    found: list[Detections]


@dataclass(slots=True)
class _Case:
    """A network, its ranges, and the images to measure its layers on."""

    planned: Plan
    lowering: Step
    records: Mapping[str, Record]
    files: Sequence[Path]
    store: Store
    registry: Registry
    _reference: _Reference | None = field(default=None)

    def layers(self, folder: Path) -> tuple[str, ...]:
        names: tuple[str, ...] = self.lowering.stage.layers(self._model(folder), self.lowering.options)
        return names

    def measure_layer(self, name: str, names: Sequence[str]) -> tuple[Record, bool]:
        """Return the record of measuring the layer `name` of all `names`."""
        kept = [n.strip() for n in (self.lowering.options.keep or "").split(",") if n.strip()]
        alone = replace(self.lowering.options, keep=",".join([*kept, *(n for n in names if n != name)]), base="fp32")
        runner = self._runner
        spec = self._spec
        post = self.registry.postprocessor(spec.head)
        options = self.planned.resolved.options
        action = Action(
            stage="sensitivity",
            plugin=self.lowering.identity,
            request={
                "layer": name,
                "model": to_json(replace(spec, provenance={})),
                "session": runner.session_key_material(options.resolve(runner.stage.Options, runner.name)),
                "postprocessor": post.cache_key_material(options.resolve(post.stage.Options, post.name)),
            },
            options=key_material(alone, self.lowering.prefix),
            inputs={
                "onnx": self._digest("onnx"),
                "ranges": self._digest("ranges"),
                "pictures": digest_of_images(
                    [self.planned.resolved.digests.of(f) for f in self.files], self.planned.resolved.image_bits
                ),
            },
            tools=self.lowering.tools,
            core_sha256=core_digest(code_digest.SENSITIVITY),
        )

        def make(folder: Path) -> Mapping[str, Json]:
            figures = self._measure(folder, name, alone)
            (folder / "out" / _FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            return figures

        return self.store.obtain(action, make)

    def _measure(self, folder: Path, name: str, alone: Any) -> dict[str, Json]:
        reference = self._run_reference()
        work = folder / "in"
        work.mkdir()
        model = self._model(work)
        ranges = work / RANGES_FILE
        self.store.copy_out(self._digest("ranges"), ranges)
        calibration = Calibration(ranges, self._digest("ranges"), read_ranges(ranges).method)
        lowered = work / "lowered"
        lowered.mkdir()
        stage, request = self.lowering.stage, self.lowering.request
        who = self.lowering.identity
        with answering(f"pass `{who.name}` of `{who.dist}`", who.dist, "apply"):
            made = stage.apply(model, calibration, replace(request, profiles=()), alone, lowered)
        spec, _ = check_pass(self.lowering, made, lowered, self.registry)
        watched = _RecordingSession(self._open(lowered / ONNX_FILE, spec), reference.outputs)
        with self._detector(watched) as detector:
            agreement = compare_detections(reference.found, detector.detect(reference.frames, _SELECTION))
        if not math.isfinite(watched.error):
            raise StageError(f"the network has non-finite outputs with `{name}` quantized")
        return {"error": watched.error, "agreement": agreement.share, "drift": agreement.drift}

    def _run_reference(self) -> _Reference:
        """Return the results of the float32 network; run at most once."""
        if self._reference is None:
            with tempfile.TemporaryDirectory(prefix="yolotrt-") as folder:
                model = self._model(Path(folder))
                watched = _RecordingSession(self._open(model.path, model.spec))
                with self._detector(watched) as detector:
                    bits = self.planned.resolved.image_bits
                    frames = _read_frames(self.files, bits, alpha=detector.reads_alpha)
                    found = detector.detect(frames, _SELECTION)
            self._reference = _Reference(frames, watched.outputs, found)
        return self._reference

    @property
    def _runner(self) -> Registered:
        return self.registry.reference_runtime()

    @property
    def _spec(self) -> ModelSpec:
        return from_json(ModelSpec, json.loads(self.store.read(self._digest("spec"))))

    def _digest(self, given: str) -> str:
        made = self.lowering.inputs[given]
        assert isinstance(made, Output)
        return self.records[made.step].outputs[made.file].sha256

    def _model(self, folder: Path) -> OnnxModel:
        path = folder / ONNX_FILE
        self.store.copy_out(self._digest("onnx"), path)
        return OnnxModel(path, self._digest("onnx"), self._spec)

    def _open(self, path: Path, spec: ModelSpec) -> Session:
        runner = self._runner
        tools = dict(runner.stage.fingerprint(runner.stage.Options()))
        opened = EngineSpec(spec, self.planned.request.precision, runner.name, tools, self.planned.request.profiles)
        options = self.planned.resolved.options.resolve(runner.stage.Options, runner.name)
        session: Session = runner.stage.open(path, opened, options, self.store.side_cache())
        return session

    def _detector(self, session: Session) -> Detector:
        post = self.registry.postprocessor(session.spec.model.head)
        return Detector(session, post, self.planned.resolved.options.resolve(post.stage.Options, post.name))


def _images(planned: Plan) -> Sequence[Path]:
    if planned.resolved.calibration is not None:
        return planned.resolved.calibration.chosen.files
    _log.warning("layers are measured on the bundled image only; pass `--calib-data` for a meaningful ranking")
    return [sample_path()]


def _read_frames(files: Sequence[Path], bits: int, *, alpha: bool) -> list[NDArray[np.uint8]]:
    """Read images without the unreadable ones, of which calibration has warned already."""
    frames = []
    for file in files:
        try:
            frames.append(images.read(file, depth=bits, alpha=alpha))
        except UsageError as err:
            _log.debug("%s; skipped", err)
    if not frames:
        raise StageError("none of the images for sensitivity can be read", hint="raise `--sensitivity-images`")
    return frames
