"""Builds with the result of the accuracy gate."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.evaluation import accuracy_gate
from yolotrt_core.evaluation.accuracy_gate import GateResult
from yolotrt_core.inference.detector import Detector
from yolotrt_core.pipeline import executor
from yolotrt_core.pipeline.build_options import BuildSettings, ResolvedBuild
from yolotrt_core.pipeline.executor import StepResult
from yolotrt_core.pipeline.plan import plan_build
from yolotrt_core.pipeline.step import ENGINE_SPEC_FILE, Plan
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import from_json
from yolotrt_core.store.action import Blob, Record
from yolotrt_core.store.store import Store
from yolotrt_core.tuning.sensitivity_options import SensitivityOptions
from yolotrt_core.types import EngineSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ValidatedBuild:
    """A build: its plan, its steps, and the result of the gate; None if the gate does not apply."""

    planned: Plan
    results: tuple[StepResult, ...]
    gate: GateResult | None

    @property
    def passed(self) -> bool:
        return self.gate is None or self.gate.passed

    @property
    def record(self) -> Record:
        """Record of the engine."""
        return self.results[-1].record

    @property
    def engine(self) -> Blob:
        """The engine file in the store."""
        return self.record.outputs[self.planned.resolved.builder.stage.engine_file]


def check_settings(settings: BuildSettings) -> None:
    """Check options and data of the validation, before the model is resolved.

    Raises:
        UsageError: an option out of bounds, missing evaluation data.
    """
    accuracy_gate.check_settings(settings)
    settings.options.resolve(SensitivityOptions, "sensitivity")


def build_and_validate(
    resolved: ResolvedBuild, *, store: Store, registry: Registry, force: bool = False, is_requested: bool = False
) -> ValidatedBuild:
    """Build an engine, with cached stages, and run the accuracy gate.

    Args:
        is_requested: the user named this build; it is not a candidate of a search.

    Raises:
        YolotrtError: see `api.build`; not for an engine that fails the gate.
    """
    planned = plan_build(resolved, registry)
    accuracy_gate.refuse_max_drop(resolved)
    if is_requested:
        _warn_of_unused_flags(planned, registry)
    results = executor.run(planned, store, registry, force=force)
    gate = accuracy_gate.validate(planned, results, store=store, registry=registry)
    return ValidatedBuild(planned, tuple(results), gate)


def _warn_of_unused_flags(planned: Plan, registry: Registry) -> None:
    """Warn of flags for stages that do not run; not of recipe keys, since a recipe may be shared by many builds."""
    given = planned.resolved.options
    if not given.flags:
        return
    running = {(step.kind, step.identity.name) for step in planned.steps}
    for kind, named in registry.stages.items():
        for name, flags in given.flags.items():
            # Any postprocessor may decode the boxes, and the gate may run the ONNX instead of the engine.
            if kind == "postprocessor" or name not in named or (kind, name) in running:
                continue
            if kind == "builder" and named[name].stage.is_reference_runtime:
                continue
            chosen = given.resolve(named[name].stage.Options, name)
            # A pass that runs by default is off because of its flag, which thus has an effect; not so if the
            # model is in that precision already.
            stage = named[name].stage
            is_off = (
                kind == "pass"
                and planned.resolved.source_info.precision is None
                and stage.applies(planned.request, stage.Options())
            )
            for option in named[name].options:
                if flags.get(option.name) is not None and getattr(chosen, option.name) != option.default and not is_off:
                    _log.warning("`%s` has no effect: no stage `%s` runs in this build", option.flag, name)


def spec_of(made: ValidatedBuild, store: Store) -> EngineSpec:
    """Return the engine's spec from the store."""
    return from_json(EngineSpec, json.loads(store.read(made.record.outputs[ENGINE_SPEC_FILE].sha256)))


def open_engine(made: ValidatedBuild, folder: Path, *, store: Store, registry: Registry) -> Detector:
    """Open the engine from a copy in `folder`.

    Raises:
        StageError: it does not run on this machine.
    """
    resolved = made.planned.resolved
    stage = resolved.builder.stage
    path = folder / f"{made.record.key[:12]}-{stage.engine_file}"
    store.copy_out(made.engine.sha256, path)
    spec = spec_of(made, store)
    return Detector.load(path, spec, resolved.builder, resolved.options, store=store, registry=registry)
