"""Plan the stages of a build, then run those whose artifact is not in the store.

A key holds the digests of the inputs, and those are known only once the stage before is known, so
a plan is walked: look up or run a step, take its outputs' digests, make the next step's key.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from yolotrt_core import log, options, parity, registry
from yolotrt_core.errors import PluginError, StageError, UsageError, YolotrtError
from yolotrt_core.registry import Registered, Registry
from yolotrt_core.sources import sha256_of
from yolotrt_core.stages import ONNX_FILE, RANGES_FILE, REFERENCE_FILE
from yolotrt_core.store.action import Action, PluginIdentity, Record
from yolotrt_core.store.failures import DamagedArtifactError
from yolotrt_core.store.store import Store
from yolotrt_core.types import (
    BuildRequest,
    Calibration,
    EngineSpec,
    Json,
    ModelSource,
    ModelSpec,
    OnnxModel,
    from_json,
    to_json,
)

_log = logging.getLogger(__name__)

SPEC_FILE = "spec.json"
ENGINE_SPEC_FILE = "engine.json"
LOG_FILE = "stage.log"
# Passes below this order run before a precision is chosen: every precision shares their artifact.
PRECISION_ORDER = 50
PARITY_BUILDER = "onnxruntime"
_CORE_SOURCES = ("yolotrt_core.stages", "yolotrt_core.types", "yolotrt_core.options", "yolotrt_core.pipeline")


@dataclass(frozen=True, slots=True)
class Output:
    """A file that an earlier step of the plan writes."""

    step: str
    file: str


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a plan.

    Attributes:
        label: unique in the plan, e.g. `export`. kind: as in Action.stage.
        request: what the stage is asked for. material: the part of it that enters the key.
        options: the stage's resolved options. prefix: their flag prefix.
        inputs: input name to an earlier step's output, or to the SHA-256 of something outside.
    """

    label: str
    kind: str
    identity: PluginIdentity
    stage: Any
    request: BuildRequest
    material: Mapping[str, Json]
    options: Any
    prefix: str
    inputs: Mapping[str, Output | str]
    tools: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a build, in order; the last one makes the engine."""

    source: ModelSource
    request: BuildRequest
    builder: Registered
    steps: tuple[Step, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)


class Settings(Protocol):
    """Where a stage's options come from: flags over recipe over defaults."""

    def resolve(self, cls: type, prefix: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class GivenOptions:
    """Stage options as the user gave them: `flags[stage][field]` text, `recipe[stage][field]`."""

    flags: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def resolve(self, cls: type, prefix: str) -> Any:
        return options.resolve(cls, prefix, self.flags.get(prefix), self.recipe.get(prefix))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which plugins the user named; None is the automatic choice."""

    exporter: str | None = None
    builder: str | None = None
    calibrator: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step's action with its record, and whether it was found in the store."""

    step: Step
    action: Action
    record: Record
    from_cache: bool


def plan(
    stages: Registry,
    source: ModelSource,
    request: BuildRequest,
    choice: Choice = Choice(),
    settings: Settings = GivenOptions(),
) -> Plan:
    """Decide which stages a build needs, without running any or importing a framework.

    Raises:
        UsageError: unknown plugin, option or precision. PluginError: a stage lacks its tools.
        StageError: the builder says that it cannot build this request.
    """
    builder = stages.usable("builder", choice.builder) if choice.builder else stages.default_builder(to_run=False)
    if request.precision not in builder.stage.precisions:
        known = ", ".join(sorted(builder.stage.precisions))
        raise UsageError(f"builder `{builder.name}` does not build {request.precision}", hint=f"it builds {known}")
    exporter = stages.usable("exporter", choice.exporter) if choice.exporter else stages.select_exporter(source)
    registry.refuse_unavailable(exporter, exporter.stage.available())
    steps = list(_steps(stages, source, request, exporter, builder, settings))
    return Plan(source, request, builder, tuple(steps))


def _steps(
    stages: Registry,
    source: ModelSource,
    request: BuildRequest,
    exporter: Registered,
    builder: Registered,
    settings: Settings,
) -> Iterator[Step]:
    neutral = _neutral(request)
    shape = {k: v for k, v in _material(neutral).items() if k not in ("precision", "profiles")}
    yield _step("export", exporter, settings, neutral, shape, {"source": source.sha256})
    onnx = "export"
    for found in stages.passes():
        if found.stage.order < PRECISION_ORDER and _applies(found, neutral, settings):
            yield _step(found.name, found, settings, neutral, shape, _model_inputs(onnx))
            onnx = found.name
    yield _parity_step(stages, settings, neutral, onnx)
    typed = replace(request, profiles=())
    for found in stages.passes():
        if found.stage.order >= PRECISION_ORDER and _applies(found, request, settings):
            if found.stage.needs_calibration:
                raise PluginError(f"pass `{found.name}` needs a calibrator, and none is installed")
            yield _step(found.name, found, settings, typed, _material(typed), _model_inputs(onnx))
            onnx = found.name
    build = _step("build", builder, settings, request, _material(request), _model_inputs(onnx))
    builder.stage.preflight(request, build.options)
    yield build


def walk(steps: Plan, store: Store) -> Iterator[tuple[Step, Action | None, Record | None]]:
    """Look each step up without running anything; for `explain`.

    Yields the step, its action (None once an earlier step is missing, since the key then cannot be
    known) and its record (None if it would run).
    """
    done: dict[str, Record] = {}
    for step in steps.steps:
        needed = {i.step for i in step.inputs.values() if isinstance(i, Output)}
        if not needed <= done.keys():
            yield step, None, None
            continue
        action = _action(step, done)
        record = store.find(action.key)
        if record is not None:
            done[step.label] = record
        yield step, action, record


def run(steps: Plan, store: Store, stages: Registry, *, force: bool = False) -> list[StepResult]:
    """Run the steps whose artifact is missing; with `force` all of them.

    Raises:
        StageError: a stage failed; the error names stage, key and log.
        ArtifactError: the store cannot be used.
    """
    try:
        return _run(steps, store, stages, force=force, verify=False)
    except DamagedArtifactError as err:
        # Only what is handed out is read on a hit; a damaged intermediate shows when it is needed.
        _log.warning("%s; making it again", err)
        return _run(steps, store, stages, force=force, verify=True)


def _run(steps: Plan, store: Store, stages: Registry, *, force: bool, verify: bool) -> list[StepResult]:
    done: dict[str, Record] = {}
    results = []
    for step in steps.steps:
        action = _action(step, done)
        began = time.perf_counter()
        record, from_cache = store.obtain(
            action,
            functools.partial(_make, steps, step, action, store),
            verify=verify or step is steps.steps[-1],
            force=force,
            on_start=lambda a: stages.manager.hook.yolotrt_stage_started(action=a),
        )
        seconds = time.perf_counter() - began
        stages.manager.hook.yolotrt_stage_finished(action=action, record=record, from_cache=from_cache, seconds=seconds)
        outcome = "found" if from_cache else "built"
        _log.info("%-9s %-11s %s  %s  %.2f s", step.label, step.identity.name, outcome, action.key[:12], seconds)
        done[step.label] = record
        results.append(StepResult(step, action, record, from_cache))
    return results


def _action(step: Step, done: Mapping[str, Record]) -> Action:
    inputs = {
        name: done[i.step].outputs[i.file].sha256 if isinstance(i, Output) else i for name, i in step.inputs.items()
    }
    return Action(
        stage=step.kind,
        plugin=step.identity,
        request=step.material,
        options=options.key_material(step.options, step.prefix),
        inputs=inputs,
        tools=step.tools,
        core_sha256=registry.source_digest(_CORE_SOURCES, "the core"),
    )


def _make(steps: Plan, step: Step, action: Action, store: Store, work: Path) -> Mapping[str, Json]:
    """Do one step's work in its folder and return the facts for the record."""
    given = work / "in"
    given.mkdir()
    for name, sha256 in action.inputs.items():
        if isinstance(step.inputs[name], Output):
            store.copy_out(sha256, given / name)
    log_file = work / LOG_FILE
    try:
        with log.stage_log(log_file):
            try:
                return _WORK[step.kind](steps, step, given, work / "out", store)
            except (YolotrtError, OSError, KeyboardInterrupt):
                raise
            except Exception as err:  # a stage of anyone's may fail in any way; the log keeps the trace
                _log.debug("unexpected", exc_info=True)
                raise StageError(
                    f"failed with {type(err).__name__}: {err}",
                    hint=f"a bug in `{step.identity.name}` of `{step.identity.dist}`: report it with the log",
                ) from err
    except StageError as err:
        err.stage, err.key, err.log = step.label, action.key, log_file
        raise
    except YolotrtError:
        log_file.unlink(missing_ok=True)  # the user's input is at fault: nothing to look up in a log
        raise


def _export(steps: Plan, step: Step, given: Path, out: Path, store: Store) -> Mapping[str, Json]:
    spec = step.stage.export(steps.source, step.request, step.options, out)
    if sha256_of(steps.source.path) != steps.source.sha256:
        raise StageError(f"`{steps.source.path}` changed while it was being exported", hint="build again")
    _write(out / SPEC_FILE, spec)
    return {"source": steps.source.name}


def _pass(steps: Plan, step: Step, given: Path, out: Path, store: Store) -> Mapping[str, Json]:
    spec, facts = step.stage.apply(_model(step, given, store), _calibration(given), step.request, step.options, out)
    _write(out / SPEC_FILE, spec)
    return dict(facts)


def _parity(steps: Plan, step: Step, given: Path, out: Path, store: Store) -> Mapping[str, Json]:
    model = _model(step, given, store)
    spec = EngineSpec(model=model.spec, precision="fp32", builder=PARITY_BUILDER, tools=step.tools)
    with step.stage.open(model.path, spec, step.stage.Options(), store.side_cache()) as session:
        facts = parity.check(session, given / "reference", step.options)
    (out / "parity.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _build(steps: Plan, step: Step, given: Path, out: Path, store: Store) -> Mapping[str, Json]:
    model = _model(step, given, store)
    _refuse_sizes(step.request, max(model.spec.strides, default=1))
    spec = step.stage.build(model, _calibration(given), step.request, step.options, out, store.side_cache())
    engine = out / step.stage.engine_file
    if not engine.is_file():
        raise StageError(f"builder `{step.identity.name}` wrote no `{engine.name}`")
    spec = replace(spec, onnx_sha256=model.sha256, engine_sha256=sha256_of(engine))
    _write(out / ENGINE_SPEC_FILE, spec)
    facts = out / "facts.json"
    told = json.loads(facts.read_text()) if facts.is_file() else {}
    facts.unlink(missing_ok=True)
    return {"size": engine.stat().st_size, **told}


def _refuse_sizes(request: BuildRequest, step: int) -> None:
    """Check the profiles against the model's largest stride, which is known only after the export."""
    for shape in (s for p in request.profiles for s in (p.min, p.opt, p.max)):
        for side in shape[1:]:
            if side % step:
                raise UsageError(
                    f"this model's height and width must be multiples of {step} pixels, a profile has {side}",
                    hint=f"the nearest is {max(step, round(side / step) * step)}",
                )


_WORK = {"exporter": _export, "pass": _pass, "parity": _parity, "builder": _build}


def _model(step: Step, given: Path, store: Store) -> OnnxModel:
    # Stages see the name that tools expect, whatever the input is called in the key.
    path = (given / "onnx").rename(given / ONNX_FILE)
    spec = from_json(ModelSpec, json.loads((given / "spec").read_text()))
    return OnnxModel(path, sha256_of(path), spec)


def _calibration(given: Path) -> Calibration | None:
    path = given / "ranges"
    if not path.is_file():
        return None
    path = path.rename(given / RANGES_FILE)
    return Calibration(path, sha256_of(path), str(json.loads(path.read_text())["method"]))


def _step(
    label: str,
    found: Registered,
    settings: Settings,
    request: BuildRequest,
    material: Mapping[str, Json],
    inputs: Mapping[str, Output | str],
) -> Step:
    registry.refuse_unavailable(found, found.stage.available())
    chosen = settings.resolve(found.stage.Options, found.name)
    return Step(
        label=label,
        kind=found.kind,
        identity=found.identity,
        stage=found.stage,
        request=request,
        material=material,
        options=chosen,
        prefix=found.name,
        inputs=inputs,
        tools=dict(found.stage.fingerprint(chosen)),
    )


def _parity_step(stages: Registry, settings: Settings, request: BuildRequest, onnx: str) -> Step:
    runner = stages.usable("builder", PARITY_BUILDER)
    chosen = settings.resolve(parity.ParityOptions, "parity")
    sources = ("yolotrt_core.parity", *runner.stage.sources)
    return Step(
        label="parity",
        kind="parity",
        identity=PluginIdentity(
            runner.name, runner.dist, runner.stage.stage_version, registry.source_digest(sources, "parity")
        ),
        stage=runner.stage,
        request=request,
        material={},
        options=chosen,
        prefix="parity",
        inputs={**_model_inputs(onnx), "reference": Output("export", REFERENCE_FILE)},
        tools=dict(runner.stage.fingerprint(runner.stage.Options())),
    )


def _model_inputs(label: str) -> dict[str, Output | str]:
    return {"onnx": Output(label, ONNX_FILE), "spec": Output(label, SPEC_FILE)}


def _applies(found: Registered, request: BuildRequest, settings: Settings) -> bool:
    return bool(found.stage.applies(request, settings.resolve(found.stage.Options, found.name)))


def _neutral(request: BuildRequest) -> BuildRequest:
    """The request as stages before the precision see it: fp32, at the first profile's optimum."""
    if request.profiles:
        batch, height, width = request.profiles[0].opt
        request = replace(request, batch=batch, height=height, width=width)
    return replace(request, precision="fp32", profiles=())


def _material(request: BuildRequest) -> dict[str, Json]:
    shown = to_json(request)
    assert isinstance(shown, dict)
    return shown


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(to_json(value), indent=1, sort_keys=True) + "\n", encoding="utf-8")
