"""An engine in the store with the gate's verdict on it, before anybody decides to hand it out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core import gate, pipeline
from yolotrt_core.detector import Detector
from yolotrt_core.engine import BuildSettings, calibration_data, plan_build
from yolotrt_core.gate import Verdict
from yolotrt_core.pipeline import ENGINE_SPEC_FILE, GivenOptions, Plan, StepResult
from yolotrt_core.registry import Registry
from yolotrt_core.sensitivity import SensitivityOptions
from yolotrt_core.store.action import Blob, Record
from yolotrt_core.store.store import Store
from yolotrt_core.types import EngineSpec, from_json


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


def make(settings: BuildSettings, *, store: Store, stages: Registry, force: bool = False) -> Judged:
    """Build and judge; what the store holds is not made again.

    Raises:
        YolotrtError: see `engine.build`; not for a verdict.
    """
    given = GivenOptions(settings.flags, settings.recipe)
    data = gate.GateData(settings.eval_data, settings.max_drop, calibration_data(settings))
    gate.check(data, given)
    given.resolve(SensitivityOptions, "sensitivity")
    planned = plan_build(settings, store=store, stages=stages)
    results = pipeline.run(planned, store, stages, force=force)
    verdict = gate.judge(planned, results, data, given, store=store, stages=stages)
    return Judged(settings, planned, tuple(results), verdict)


def open_engine(made: Judged, folder: Path, *, store: Store, stages: Registry) -> Detector:
    """Open the engine from a copy in `folder`.

    Raises:
        StageError: it does not run here.
    """
    stage = made.planned.builder.stage
    given = GivenOptions(made.settings.flags, made.settings.recipe)
    path = folder / f"{made.record.key[:12]}-{stage.engine_file}"
    store.copy_out(made.engine.sha256, path)
    spec = from_json(EngineSpec, json.loads(store.read(made.record.outputs[ENGINE_SPEC_FILE].sha256)))
    return Detector.load(path, spec, made.planned.builder, given, store=store, stages=stages)
