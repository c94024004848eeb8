"""An engine in the store with the gate's verdict on it, before anybody decides to hand it out."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.build import executor
from yolotrt_core.build.executor import StepResult
from yolotrt_core.build.settings import BuildSettings, calibration_data, plan_build
from yolotrt_core.build.step import ENGINE_SPEC_FILE, PARITY_BUILDER, Plan
from yolotrt_core.evaluation import accuracy_gate
from yolotrt_core.evaluation.accuracy_gate import Verdict
from yolotrt_core.inference.detector import Detector
from yolotrt_core.plugin.given_options import GivenOptions
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import from_json
from yolotrt_core.store.action import Blob, Record
from yolotrt_core.store.store import Store
from yolotrt_core.tuning.sensitivity import SensitivityOptions
from yolotrt_core.types import EngineSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """A build of `settings`: its plan, what ran, and the verdict; None for what the gate does not judge."""

    settings: BuildSettings
    planned: Plan
    results: tuple[StepResult, ...]
    verdict: Verdict | None

    @property
    def passed(self) -> bool:
        return self.verdict is None or self.verdict.passed

    @property
    def record(self) -> Record:
        """The engine's."""
        return self.results[-1].record

    @property
    def engine(self) -> Blob:
        """The engine file in the store."""
        return self.record.outputs[self.planned.builder.stage.engine_file]


def make(
    settings: BuildSettings, *, store: Store, registry: Registry, force: bool = False, is_asked_for: bool = False
) -> Judged:
    """Build and judge; what the store holds is not made again.

    Args:
        is_asked_for: this very build is what a user named, not one that a search tries.

    Raises:
        YolotrtError: see `engine.build`; not for a verdict.
    """
    given = GivenOptions(settings.flags, settings.recipe)
    data = accuracy_gate.GateData(settings.eval_data, settings.max_drop, calibration_data(settings))
    accuracy_gate.check(data, given)
    given.resolve(SensitivityOptions, "sensitivity")
    planned = plan_build(settings, store=store, registry=registry)
    accuracy_gate.refuse_limit(planned, data, given)
    if is_asked_for:
        _say_what_is_idle(planned, given, registry)
    results = executor.run(planned, store, registry, force=force)
    verdict = accuracy_gate.judge(planned, results, data, given, store=store, registry=registry)
    return Judged(settings, planned, tuple(results), verdict)


def _say_what_is_idle(planned: Plan, given: GivenOptions, registry: Registry) -> None:
    """Warn of flags for stages that the build does not have; a recipe may serve many builds, so not of its keys."""
    running = {(step.kind, step.identity.name) for step in planned.steps}
    for kind, named in registry.stages.items():
        for name, flags in given.flags.items():
            # Boxes are decoded with any postprocessor, and the gate may run the ONNX where the engine cannot run.
            if kind == "postprocessor" or name not in named or (kind, name) in running or name == PARITY_BUILDER:
                continue
            asked = given.resolve(named[name].stage.Options, name)
            # A pass that would run by default is away because a flag says so, which is its effect; not so where the
            # model is in that precision already.
            stage = named[name].stage
            is_off = kind == "pass" and planned.source.holds is None and stage.applies(planned.request, stage.Options())
            for option in named[name].options:
                if flags.get(option.name) is not None and getattr(asked, option.name) != option.default and not is_off:
                    _log.warning("`%s` has no effect: no stage `%s` runs in this build", option.flag, name)


def spec_of(made: Judged, store: Store) -> EngineSpec:
    """Return the engine's spec, as it lies beside it in the store."""
    return from_json(EngineSpec, json.loads(store.read(made.record.outputs[ENGINE_SPEC_FILE].sha256)))


def open_engine(made: Judged, folder: Path, *, store: Store, registry: Registry) -> Detector:
    """Open the engine from a copy in `folder`.

    Raises:
        StageError: it does not run here.
    """
    stage = made.planned.builder.stage
    given = GivenOptions(made.settings.flags, made.settings.recipe)
    path = folder / f"{made.record.key[:12]}-{stage.engine_file}"
    store.copy_out(made.engine.sha256, path)
    return Detector.load(path, spec_of(made, store), made.planned.builder, given, store=store, registry=registry)
