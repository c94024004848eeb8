"""Accuracy gate: validates every reduced-precision engine against its fp32 model before it is returned.

With labels, mAP decides, of masks too where there are some, and of classification models top-1 accuracy; without,
agreement with the detections, or the best classes, of the fp32 network. An engine fails if nothing can be compared. The
engine itself is run if this machine can; otherwise the typed ONNX it was built from, in onnxruntime.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolotrt_core.calibration.images import digest_of_images
from yolotrt_core.console.text import counted
from yolotrt_core.datasets import dataset, reader
from yolotrt_core.errors import GateError, UsageError
from yolotrt_core.evaluation import gate_facts
from yolotrt_core.evaluation.gate_options import GateOptions
from yolotrt_core.evaluation.map_facts import map_facts
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.inference.detector import Detector
from yolotrt_core.pipeline.build_options import BuildSettings, ResolvedBuild
from yolotrt_core.pipeline.executor import StepResult
from yolotrt_core.pipeline.step import ENGINE_SPEC_FILE, SPEC_FILE, Output, Plan
from yolotrt_core.plugin.options import key_material
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, tool_versions
from yolotrt_core.serialization import from_json
from yolotrt_core.store import code_digest
from yolotrt_core.store.action import Action
from yolotrt_core.store.code_digest import core_digest
from yolotrt_core.store.store import Store
from yolotrt_core.types import EngineSpec, Json, ModelSpec, Selection

_log = logging.getLogger(__name__)

_FEW_BOXES = 5
_RESULT_FILE = "gate.json"


DEFAULT_MAX_DROP = 0.005


@dataclass(frozen=True, slots=True)
class GateResult:
    """Result of the accuracy gate.

    Attributes:
        passed: whether the engine may be returned. text: summary in one line.
        facts: the figures, for the record; `reference` names what it was compared with. key: of the record.
        from_cache: whether nothing was run.
    """

    passed: bool
    facts: Mapping[str, Json]
    key: str
    from_cache: bool

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        return gate_facts.summary(self.facts)


def check_settings(settings: BuildSettings) -> None:
    """Check the gate's options and data before anything is built.

    Raises:
        UsageError: an option out of bounds, missing evaluation data, `max_drop` without any.
    """
    options: GateOptions = settings.options.resolve(GateOptions, "gate")
    if not options.check:
        return
    if settings.eval_data is not None:
        reader.check(settings.eval_data, labels_needed=settings.max_drop is not None)
    elif settings.max_drop is not None:
        raise UsageError("`--max-drop` needs labelled images", hint="pass them with `--eval-data`")


def refuse_max_drop(resolved: ResolvedBuild) -> None:
    """Refuse `max_drop` for a reduced-precision model: there is no fp32 reference.

    Raises:
        UsageError: names the precision of the model.
    """
    precision = resolved.source_info.precision
    if resolved.max_drop is not None and precision is not None and resolved.options.resolve(GateOptions, "gate").check:
        raise UsageError(
            f"`--max-drop` needs an fp32 reference, but `{resolved.source.path.name}` is already {precision}",
            hint="omit it and `evaluate` the engine, or use the float32 model",
        )


def validate(planned: Plan, results: Sequence[StepResult], *, store: Store, registry: Registry) -> GateResult | None:
    """Compare the engine of a build with its source network: fp32, or the precision of the source model.

    Returns:
        The result, or None if there is nothing to compare: an fp32 engine, the gate is off, or the engine is the
        source graph itself.

    Raises:
        UsageError: `max_drop` without labels, or images that cannot be used.
    """
    resolved = planned.resolved
    settings, builder, source_precision = resolved.options, resolved.builder, resolved.source_info.precision
    options: GateOptions = settings.resolve(GateOptions, "gate")
    build = next(r for r in results if r.step.kind == "builder")
    reference, typed = (_onnx_of(results, kind) for kind in ("parity", "builder"))
    if not options.check or reference is None or typed is None or planned.request.precision == "fp32":
        return None
    runner = registry.reference_runtime()
    runnable = builder.stage.runnable().ok
    is_given = source_precision is not None and _same_onnx(reference, typed)
    if is_given and (not runnable or builder.name == runner.name):
        _log.warning(
            "accuracy gate skipped: the source ONNX is already %s, so there is no fp32 reference; "
            "`evaluate` it on labelled images",
            source_precision,
        )
        return None
    # Without an engine that runs, the graph is validated; an untyped one is the fp32 graph itself.
    if not runnable and (reference is typed or planned.request.precision not in runner.stage.precisions):
        _log.warning("accuracy gate skipped: no runtime on this machine supports %s", planned.request.precision)
        return None
    case = _Case(planned, build, reference, typed, runner, runnable, store, registry)
    files, labelled, noun = _images(resolved, options, case.model)
    limit = resolved.max_drop if resolved.max_drop is not None else DEFAULT_MAX_DROP
    action = Action(
        stage="gate",
        plugin=builder.session_identity,
        request={
            **({"max_drop": limit} if labelled else {}),
            "postprocessor": case.decoded_by,
            "sessions": case.opened_by,
            "reference": case.compared_with,
        },
        options=key_material(options, "gate"),
        inputs={
            "engine": build.record.outputs[builder.stage.engine_file].sha256,
            "onnx": typed.record.outputs[ONNX_FILE].sha256,
            "reference": reference.record.outputs[ONNX_FILE].sha256,
            # Head, labels and strides decide how the same outputs are decoded.
            "engine spec": build.record.outputs[ENGINE_SPEC_FILE].sha256,
            "onnx spec": typed.record.outputs[SPEC_FILE].sha256,
            "reference spec": reference.record.outputs[SPEC_FILE].sha256,
            "pictures": digest_of_images([resolved.digests.of(f) for f in files], resolved.image_bits),
            **({"labels": labelled.digest} if labelled else {}),
        },
        tools=tool_versions(("numpy", "faster_coco_eval")) if labelled else {},
        core_sha256=core_digest(code_digest.GATE),
    )

    def make(folder: Path) -> Mapping[str, Json]:
        origin = counted(len(files), noun) if noun else gate_facts.BUNDLED
        origin += " with labels" if labelled else ""
        by_labels = _by_map if case.model.has_boxes else _by_top1
        facts = by_labels(case, labelled, limit) if labelled else _by_agreement(case, files, options)
        facts = {"pictures_from": origin, "ran": case.ran, "reference": case.compared_with, **facts}
        (folder / "out" / _RESULT_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return facts

    record, from_cache = store.obtain(action, make)
    facts = record.facts
    return GateResult(bool(facts["passed"]), facts, record.key, from_cache)


def refuse_failed(result: GateResult | None, precision: str, key: str) -> None:
    """Log the gate's result, and raise if the engine failed.

    Raises:
        GateError: it failed; names the artifact of the engine.
    """
    if result is None:
        return
    if result.passed:
        _log.info("gate      %s", result)
        if result.facts["reference"] != "fp32":
            _log.warning(
                "accuracy gate compared with the %s, not with fp32; `evaluate` both models on labelled images",
                result.facts["reference"],
            )
        boxes = result.facts.get("fp32_boxes")
        if isinstance(boxes, int) and boxes < _FEW_BOXES:
            _log.warning(
                "accuracy gate used only %s; pass `--eval-data` for a meaningful check",
                counted(boxes, "box" if result.facts["by"] == "agreement" else "image"),
            )
        return
    raise GateError(
        f"the {precision} engine failed the accuracy gate: {result.text}",
        hint=f"the engine is kept in the store as {key[:12]}; {gate_facts.advice(result.facts, precision)}",
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """The two networks to compare and how to open them."""

    planned: Plan
    build: StepResult
    reference: StepResult
    typed: StepResult
    runner: Registered
    runnable: bool
    store: Store
    registry: Registry

    @property
    def ran(self) -> str:
        return "the engine" if self.runnable else f"its typed ONNX in {self.runner.name}"

    @property
    def compared_with(self) -> str:
        precision = self.planned.resolved.source_info.precision
        return "fp32" if precision is None else f"{precision} source"

    @property
    def model(self) -> ModelSpec:
        return self._spec(self.reference)

    @property
    def decoded_by(self) -> dict[str, Json]:
        """Cache key material of the postprocessors of both networks, by head."""
        material: dict[str, Json] = {}
        for head in (self._spec(made).head for made in (self.reference, self.typed)):
            found = self.registry.postprocessor(head)
            material[head] = found.cache_key_material(
                self.planned.resolved.options.resolve(found.stage.Options, found.name)
            )
        return material

    @property
    def opened_by(self) -> dict[str, Json]:
        """Cache key material of the sessions that run both networks."""
        pair = {"reference": self.runner, "engine": self.planned.resolved.builder if self.runnable else self.runner}
        options = self.planned.resolved.options
        return {k: b.session_key_material(options.resolve(b.stage.Options, b.name)) for k, b in pair.items()}

    def open_reference(self, folder: Path) -> Detector:
        return self._open_onnx(self.reference, folder / "reference.onnx")

    def open_lowered(self, folder: Path) -> Detector:
        if not self.runnable:
            return self._open_onnx(self.typed, folder / "lowered.onnx")
        outputs = self.build.record.outputs
        stage = self.planned.resolved.builder.stage
        path = folder / stage.engine_file
        self.store.copy_out(outputs[stage.engine_file].sha256, path)
        spec = from_json(EngineSpec, json.loads(self.store.read(outputs[ENGINE_SPEC_FILE].sha256)))
        return self._detector(self.planned.resolved.builder, path, spec)

    def _open_onnx(self, made: StepResult, path: Path) -> Detector:
        outputs = made.record.outputs
        self.store.copy_out(outputs[ONNX_FILE].sha256, path)
        sha256 = outputs[ONNX_FILE].sha256
        tools = dict(self.runner.stage.fingerprint(self.runner.stage.Options()))
        precision = self.planned.request.precision
        if made is self.reference:
            precision = self.planned.resolved.source_info.precision or "fp32"
        spec = EngineSpec(self._spec(made), precision, self.runner.name, tools, self.planned.request.profiles)
        return self._detector(self.runner, path, replace(spec, onnx_sha256=sha256, engine_sha256=sha256))

    def _spec(self, made: StepResult) -> ModelSpec:
        return from_json(ModelSpec, json.loads(self.store.read(made.record.outputs[SPEC_FILE].sha256)))

    def _detector(self, builder: Registered, path: Path, spec: EngineSpec) -> Detector:
        return Detector.load(
            path, spec, builder, self.planned.resolved.options, store=self.store, registry=self.registry
        )


@dataclass(frozen=True, slots=True)
class _Labelled:
    data: dataset.DataSet
    digest: str


def _onnx_of(results: Sequence[StepResult], kind: str) -> StepResult | None:
    """Return the step that wrote the ONNX input of the step of this kind."""
    reader = next((r.step for r in results if r.step.kind == kind), None)
    if reader is None:
        return None
    given = reader.inputs["onnx"]
    return next(r for r in results if isinstance(given, Output) and r.step.label == given.step)


def _same_onnx(one: StepResult, other: StepResult) -> bool:
    return one.record.outputs[ONNX_FILE].sha256 == other.record.outputs[ONNX_FILE].sha256


def _images(
    resolved: ResolvedBuild, options: GateOptions, model: ModelSpec
) -> tuple[list[Path], _Labelled | None, str]:
    """Return the images to compare on, their labels if mAP decides, and what they are; empty: the bundled image."""
    if resolved.read_eval_data is not None:
        found = resolved.read_eval_data(model.labels, model.task)
        files = [p.path for p in found.images]
        if found.boxes:
            return files, _Labelled(found, found.digest), "evaluation image"
        files = files[: options.images]
        return files, None, "evaluation image"
    if resolved.calibration is not None:
        files = list(resolved.calibration.chosen.files[: options.images])
        return files, None, "calibration image"
    return [sample_path()], None, ""


def _by_map(case: _Case, labelled: _Labelled, limit: float) -> dict[str, Json]:
    from yolotrt_core.evaluation.evaluator import Evaluator

    evaluator = Evaluator(labelled.data, case.store, case.registry, digests=case.planned.resolved.digests)
    return {"compared": labelled.data.boxes, **map_facts(*_evaluate_both(case, evaluator), limit)}


def _by_top1(case: _Case, labelled: _Labelled, limit: float) -> dict[str, Json]:
    from yolotrt_core.evaluation.class_accuracy import ClassEvaluator, top1_facts

    evaluator = ClassEvaluator(labelled.data, case.store, case.registry, digests=case.planned.resolved.digests)
    reference, lowered, comparison = _evaluate_both(case, evaluator)
    return {"compared": reference.images, **top1_facts(reference, lowered, comparison, limit)}


def _evaluate_both(case: _Case, evaluator: Any) -> tuple[Any, Any, Any]:
    """Return the evaluations of the reference and of the engine, and their comparison."""
    with tempfile.TemporaryDirectory(prefix="yolotrt-") as folder:
        with case.open_reference(Path(folder)) as detector:
            reference = evaluator.evaluate(detector)
        with case.open_lowered(Path(folder)) as detector:
            lowered = evaluator.evaluate(detector)
    return reference, lowered, evaluator.compare(reference, lowered)


def _by_agreement(case: _Case, files: Sequence[Path], options: GateOptions) -> dict[str, Json]:
    from yolotrt_core.evaluation.predictions import predict

    given: Any = {"store": case.store, "registry": case.registry, "digests": case.planned.resolved.digests}
    with tempfile.TemporaryDirectory(prefix="yolotrt-") as folder:

        def found(selection: Selection) -> gate_facts.Pair:
            with case.open_reference(Path(folder)) as detector:
                reference = predict(detector, files, selection, **given)
            with case.open_lowered(Path(folder)) as detector:
                lowered = predict(detector, files, selection, **given)
            expected, other = ([d for d in side.found if d is not None] for side in (reference, lowered))
            return expected, other

        return gate_facts.agreement_facts(found, options)
