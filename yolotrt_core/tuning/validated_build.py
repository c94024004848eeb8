"""Builds with the result of the accuracy gate."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.build import executor
from yolotrt_core.build.executor import StepResult
from yolotrt_core.build.plan import plan_build
from yolotrt_core.build.settings import BuildSettings, ResolvedBuild
from yolotrt_core.build.step import ENGINE_SPEC_FILE, Plan
from yolotrt_core.evaluation import accuracy_gate
from yolotrt_core.evaluation.accuracy_gate import GateResult
from yolotrt_core.inference.detector import Detector
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import from_json
from yolotrt_core.store.action import Blob, Record
from yolotrt_core.store.store import Store
from yolotrt_core.tuning.sensitivity import SensitivityOptions
from yolotrt_core.types import EngineSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ValidatedBuild:
    """A build: its plan, what ran, and the result of the gate; None for what the gate does not look at."""

    planned: Plan
    results: tuple[StepResult, ...]
    gate: GateResult | None

    @property
    def passed(self) -> bool:
        return self.gate is None or self.gate.passed

    @property
    def record(self) -> Record:
        """The engine's."""
        return self.results[-1].record

    @property
    def engine(self) -> Blob:
        """The engine file in the store."""
        return self.record.outputs[self.planned.resolved.builder.stage.engine_file]


def check_settings(settings: BuildSettings) -> None:
    """Check what validation will need, before a model is looked for.

    Raises:
        UsageError: an option out of bounds, evaluation data that is not there.
    """
    accuracy_gate.check_settings(settings)
    settings.options.resolve(SensitivityOptions, "sensitivity")


def build_and_validate(
    resolved: ResolvedBuild, *, store: Store, registry: Registry, force: bool = False, is_asked_for: bool = False
) -> ValidatedBuild:
    """Build an engine and run the gate on it; what the store holds is not made again.

    Args:
        is_asked_for: this very build is what a user named, not a candidate of a search.

    Raises:
        YolotrtError: see `api.build`; not for an engine that fails the gate.
    """
    planned = plan_build(resolved, registry)
    accuracy_gate.refuse_max_drop(resolved)
    if is_asked_for:
        _warn_of_unused_flags(planned, registry)
    results = executor.run(planned, store, registry, force=force)
    gate = accuracy_gate.validate(planned, results, store=store, registry=registry)
    return ValidatedBuild(planned, tuple(results), gate)


def _warn_of_unused_flags(planned: Plan, registry: Registry) -> None:
    """Warn of flags for stages that the build does not have; a recipe may serve many builds, so not of its keys."""
    given = planned.resolved.options
    if not given.flags:
        return
    running = {(step.kind, step.identity.name) for step in planned.steps}
    for kind, named in registry.stages.items():
        for name, flags in given.flags.items():
            # Boxes are decoded with any postprocessor, and the gate may run the ONNX where the engine cannot run.
            if kind == "postprocessor" or name not in named or (kind, name) in running:
                continue
            if kind == "builder" and named[name].stage.is_reference_runtime:
                continue
            asked = given.resolve(named[name].stage.Options, name)
            # A pass that would run by default is away because a flag says so, which is its effect; not so where the
            # model is in that precision already.
            stage = named[name].stage
            is_off = (
                kind == "pass"
                and planned.resolved.source_info.precision is None
                and stage.applies(planned.request, stage.Options())
            )
            for option in named[name].options:
                if flags.get(option.name) is not None and getattr(asked, option.name) != option.default and not is_off:
                    _log.warning("`%s` has no effect: no stage `%s` runs in this build", option.flag, name)


def spec_of(made: ValidatedBuild, store: Store) -> EngineSpec:
    """Return the engine's spec, as it lies beside it in the store."""
    return from_json(EngineSpec, json.loads(store.read(made.record.outputs[ENGINE_SPEC_FILE].sha256)))


def open_engine(made: ValidatedBuild, folder: Path, *, store: Store, registry: Registry) -> Detector:
    """Open the engine from a copy in `folder`.

    Raises:
        StageError: it does not run here.
    """
    resolved = made.planned.resolved
    stage = resolved.builder.stage
    path = folder / f"{made.record.key[:12]}-{stage.engine_file}"
    store.copy_out(made.engine.sha256, path)
    spec = spec_of(made, store)
    return Detector.load(path, spec, resolved.builder, resolved.options, store=store, registry=registry)
