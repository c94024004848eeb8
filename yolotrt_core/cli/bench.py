"""`bench`: how fast an engine is on this machine, alone or beside another."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from yolotrt_core.api import Detector
from yolotrt_core.benchmark.machine import machine_facts
from yolotrt_core.benchmark.throughput import Candidate, Speed, measure_speed, measure_streams
from yolotrt_core.cli import build
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task, stage_flags
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import user_path
from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.types import EngineSpec, Json

_OWN = (
    Flag("engine", "Engine file made by `build`, instead of --weights"),
    Flag("against", "A second engine file, timed in turn with the first"),
    Flag(
        "batches", "Batch sizes, as 1,8,32: each a static engine of --weights (default: --batch, or the engine's own)"
    ),
    Flag("frame", "Size of the host frames in pixels, as HEIGHTxWIDTH (default 480x640)"),
    Flag("repeats", "Calls timed for each figure (default 100)"),
    Flag("json", "Print one JSON document, see yolotrt_core/schemas/bench.json", switch=True),
)
RESERVED = tuple("--" + f.name.replace("_", "-") for f in _OWN)


def task(stages: Registry) -> Any:
    """Make the `bench` task."""
    summary = (
        "Time an engine alone and from host frames to boxes; compare two in one shuffled run.\n\n"
        "Example: bench --weights yolov5n.pt --batches 1,8,32"
    )
    flags = [*_OWN, *build.RUN_SETTINGS, *build.PARITY_FLAGS, *stage_flags(stages, KINDS)]
    return make_task("bench", summary, flags, lambda given: _bench(stages, given))


def _bench(stages: Registry, given: Given) -> None:
    build.refuse_build_flags(given)
    settings = build.build_settings(stages, given)
    # Timing says nothing about accuracy, and judging it would only make one wait.
    settings = replace(settings, flags={**settings.flags, "gate": {"check": "off"}})
    size = _frame_size(given["frame"] or "480x640")
    repeats = build.whole_number("--repeats", given["repeats"] or 100)
    if given["against"]:
        read_engine_spec(user_path(given["against"]))  # before anything is built to be timed beside it
    store = open_store(build.path_from_text(given["store"]))
    batches = _batches(given["batches"])
    if batches and (given["engine"] or settings.dynamic):
        raise UsageError("`--batches` builds static engines, so it goes with `--weights` and without `--dynamic`")
    with contextlib.ExitStack() as stack:

        def opened(engine: str | None, batch: int | None) -> Detector:
            wanted = settings if batch is None else replace(settings, batch=batch)
            chosen = {f: getattr(wanted, f) for f in wanted.__slots__ if f != "weights"}
            weights = None if engine else wanted.weights
            return stack.enter_context(Detector.open(weights, engine=engine, store=store, stages=stages, **chosen))

        candidates = [_candidate(f"batch {b}", opened(None, b)) for b in batches]
        if not candidates:
            name = given["engine"] or settings.weights or "embedded model"
            candidates = [_candidate(str(name), opened(given["engine"], None))]
        if given["against"]:
            candidates.append(_candidate(f"{given['against']} (against)", opened(given["against"], None)))
        speeds = measure_speed(candidates, size, repeats)
        streams = measure_streams(candidates, size)
        engines = {c.name: c.detector.spec for c in candidates}
        facts = machine_facts()
    if given["json"]:
        print(json.dumps(document(speeds, streams, engines, facts, size), indent=2))
    else:
        _report(speeds, streams, engines, facts, size)


def document(
    speeds: list[Speed],
    streams: Mapping[str, float],
    engines: Mapping[str, EngineSpec],
    facts: dict[str, Json],
    size: tuple[int, int],
) -> Json:
    """Return what `bench --json` prints; its form is in yolotrt_core/schemas/bench.json.

    Args:
        streams: frames a second of each where they keep coming. engines: the specs. size: (height, width) of frames.
    """
    return {
        "schema": 1,
        "machine": facts,
        "frame": {"height": size[0], "width": size[1]},
        "engines": [
            {
                "name": s.name,
                "builder": engines[s.name].builder,
                "precision": engines[s.name].precision,
                "tools": to_json(engines[s.name].tools),
                "batch": s.batch,
                "cuda_graph": s.graph,
                "engine": to_json(s.engine),
                "engine_images_per_second": s.engine.per_second(s.batch),
                "end_to_end": to_json(s.end_to_end),
                "images_per_second": s.images_per_second,
                "stream_images_per_second": streams[s.name],
                "steps_ms": to_json(s.steps_ms),
            }
            for s in speeds
        ],
    }


def _report(
    speeds: list[Speed],
    streams: Mapping[str, float],
    engines: Mapping[str, EngineSpec],
    facts: dict[str, Json],
    size: tuple[int, int],
) -> None:
    gpu = facts["gpu"]
    words = ", ".join(f"{k} {v}" for k, v in gpu.items()) if isinstance(gpu, dict) else "none"
    machine = [("processor", f"{facts['processor']}, {os.cpu_count()} threads"), ("GPU", words)]
    machine += [
        ("frames", f"{size[0]}x{size[1]} (height x width), BGR"),
        ("peak memory", f"{facts['peak_host_memory_mib']} MiB"),
    ]
    print_table(("machine", ""), machine)
    print()
    rows = []
    for s in speeds:
        spec = engines[s.name]
        for what, t in (("engine", s.engine), ("frames to boxes", s.end_to_end)):
            figures = (t.p50_ms, t.p90_ms, t.p99_ms)
            shown = tuple(f"{f:.3f}" for f in figures)
            rows.append(
                (s.name, spec.precision, str(s.batch), what, *shown, f"{t.per_second(s.batch):.0f}", s.graph or "-")
            )
        rate = f"{streams[s.name]:.0f}"
        rows.append((s.name, spec.precision, str(s.batch), "stream", "", "", "", rate, s.graph or "-"))
    print_table(("what", "precision", "batch", "timed", "p50 ms", "p90", "p99", "images/s", "CUDA graph"), rows)
    print()
    steps = [(s.name, ", ".join(f"{k} {v:.3f}" for k, v in s.steps_ms.items())) for s in speeds]
    print_table(("what", "ms by step"), steps)
    if len(speeds) == 2 and speeds[1].name.endswith("(against)"):
        ratio = speeds[0].end_to_end.p50_ms / speeds[1].end_to_end.p50_ms
        alone = speeds[0].engine.p50_ms / speeds[1].engine.p50_ms
        more = streams[speeds[0].name] / streams[speeds[1].name]
        times = f"ms of engine {alone:.3f}, of frames to boxes {ratio:.3f}"
        print(f"\nfirst / second: {times}; images/s of stream {more:.3f}")


def _candidate(name: str, detector: Detector) -> Candidate:
    profiles = detector.spec.profiles
    shape = detector.spec.model.inputs[0].shape
    batch = profiles[0].opt[0] if profiles else int(shape[0])
    return Candidate(name, detector, batch)


def _batches(text: str | None) -> list[int]:
    words = [w.strip() for w in (text or "").split(",") if w.strip()]
    return [build.whole_number("--batches", w) for w in dict.fromkeys(words)]


def _frame_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise UsageError(f"`--frame` expects HEIGHTxWIDTH in pixels, as 1080x1920, found `{text}`")
    return int(found[1]), int(found[2])
