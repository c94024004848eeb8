"""Timing of built engines against each other, cached by engines and machine."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolotrt_core.benchmark.machine import machine_facts
from yolotrt_core.benchmark.throughput import Candidate, measure_speed
from yolotrt_core.media.images import opencv_version
from yolotrt_core.plugin.registered import OWN_DIST
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store import code_digest
from yolotrt_core.store.action import Action, PluginIdentity, canonical_json
from yolotrt_core.store.code_digest import core_digest
from yolotrt_core.store.store import Store
from yolotrt_core.tuning.validated_build import ValidatedBuild, open_engine, spec_of
from yolotrt_core.types import Json

_TIMES_FILE = "times.json"
_FRAME = (480, 640)
_REPEATS = 20


def times_ms(engines: Sequence[ValidatedBuild], *, store: Store, registry: Registry) -> dict[str, float]:
    """Time engines in one interleaved run, from host frames to boxes.

    Only times of one run are comparable, so the artifact is the run of these engines, options and machine.

    Returns:
        Median milliseconds per image, by key of the engine's record.
    """
    # By key, not by file: two builders may write the same file and run it at different speeds.
    distinct = {e.record.key: e for e in engines}
    runs = {key: _run(made, store, registry) for key, made in distinct.items()}
    names = {key: f"engine {n}" for n, key in enumerate(sorted(runs, key=lambda key: canonical_json(runs[key])))}
    machine = machine_facts()
    gpu = machine["gpu"] if isinstance(machine["gpu"], dict) else {}
    action = Action(
        stage="timing",
        plugin=PluginIdentity("timing", OWN_DIST, 1, core_digest(code_digest.TIMING)),
        request={
            "frame": list(_FRAME),
            "repeats": _REPEATS,
            "runs": {name: runs[key] for key, name in names.items()},
        },
        options={},
        inputs={name: distinct[key].engine.sha256 for key, name in names.items()},
        tools={
            "opencv": opencv_version(),
            "processor": str(machine["processor"]),
            **{k: str(v) for k, v in gpu.items() if k in ("name", "driver_version")},
        },
        core_sha256=core_digest(code_digest.TIMING),
    )

    def measure(folder: Path) -> Mapping[str, Json]:
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yolotrt-")))
            candidates = []
            for key, made in distinct.items():
                detector = stack.enter_context(open_engine(made, place, store=store, registry=registry))
                candidates.append(Candidate(names[key], detector, made.planned.request.batch))
            speeds = measure_speed(candidates, _FRAME, _REPEATS)
        facts: dict[str, Json] = {s.name: s.end_to_end.p50_ms / s.batch for s in speeds}
        (folder / "out" / _TIMES_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return facts

    record, _ = store.obtain(action, measure)
    return {key: float(str(record.facts[name])) for key, name in names.items()}


def _run(made: ValidatedBuild, store: Store, registry: Registry) -> dict[str, Json]:
    """Return all that an engine's speed depends on, except the machine."""
    given, builder = made.planned.resolved.options, made.planned.resolved.builder
    head = registry.postprocessor(spec_of(made, store).model.head)
    return {
        "engine": made.engine.sha256,
        "batch": made.planned.request.batch,
        "session": builder.session_key_material(given.resolve(builder.stage.Options, builder.name), timed=True),
        "postprocessor": head.cache_key_material(given.resolve(head.stage.Options, head.name), timed=True),
    }
