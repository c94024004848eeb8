"""`bench`: speed of an engine on this machine, alone or compared with another."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from yolotrt_core.cli.recipe import RecipeSettings, build_groups, build_settings, refuse_build_flags
from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import user_path
from yolotrt_core.plugin.options import MANY, Format, option, read_number, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.types import EngineSpec, Json

if TYPE_CHECKING:
    from yolotrt_core.api import Detector
    from yolotrt_core.benchmark.throughput import Candidate, Speed


def _batches(value: Any) -> tuple[int, ...]:
    sizes = tuple(dict.fromkeys(read_number(n, int) for n in str(value).split(",") if n.strip()))
    if not all(1 <= size <= MANY for size in sizes):
        raise ValueError
    return sizes


def _frame_size(value: Any) -> tuple[int, int]:
    found = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", str(value))
    if found is None:
        raise ValueError
    return int(found[1]), int(found[2])


@dataclass(frozen=True, eq=False, repr=False)
class BenchSettings(RecipeSettings):
    """Settings of a benchmark."""

    engine: str | None = option(
        None, common=True, metavar="FILE", default_text="from --weights", help="Engine file of `build`"
    )
    against: str | None = option(
        None, common=True, metavar="FILE", default_text="none",
        help="Engine file to compare with; both are timed in one interleaved run",
    )  # fmt: skip
    batches: tuple[int, ...] = option(
        (), common=True, default_text="--batch, or that of the engine",
        help="Batch sizes, each timed on a static engine built from --weights",
        format=Format("LIST", "whole numbers of at least 1, for example 1,8,32", _batches),
    )  # fmt: skip
    frame: tuple[int, int] = option(
        (480, 640), common=True, default_text="480x640", help="Size of the host frames in pixels",
        format=Format("HEIGHTxWIDTH", "HEIGHTxWIDTH in pixels, for example 1080x1920", _frame_size),
    )  # fmt: skip
    repeats: int = option(100, common=True, minimum=1, maximum=MANY, help="Calls timed for each figure")
    json: bool = json_option("bench")


def task(registry: Registry) -> Any:
    """Make the `bench` task."""
    summary = (
        "Time an engine alone and from host frames to boxes; compare two in one interleaved run.\n\n"
        "Example: bench --weights yolov5n.pt --batches 1,8,32"
    )
    groups = build_groups(registry, BenchSettings, run=True)
    return make_task("bench", summary, groups, lambda given: _bench(registry, given))


def _bench(registry: Registry, given: Given) -> None:
    from yolotrt_core.api import Detector
    from yolotrt_core.benchmark.machine import machine_facts
    from yolotrt_core.benchmark.throughput import measure_speed, measure_streams
    from yolotrt_core.inference.engine_file import read_engine_spec

    refuse_build_flags(given)
    settings = build_settings(registry, given)
    # Timing needs no accuracy gate.
    settings = replace(settings, flags={**settings.flags, "gate": {"check": "off"}})
    asked = resolve_settings(BenchSettings, given)
    if asked.against:
        read_engine_spec(user_path(asked.against))  # before anything is built to compare with it
    store = open_store(asked.store)
    if asked.batches and (asked.engine or settings.dynamic):
        raise UsageError("`--batches` builds static engines: it needs `--weights`, without `--dynamic`")
    with contextlib.ExitStack() as stack:

        def opened(engine: str | None, batch: int | None) -> Detector:
            wanted = settings if batch is None else replace(settings, batch=batch)
            wanted = replace(wanted, weights=None) if engine else wanted
            return stack.enter_context(Detector.open(engine=engine, store=store, registry=registry, settings=wanted))

        candidates = [_candidate(f"batch {b}", opened(None, b)) for b in asked.batches]
        if not candidates:
            name = asked.engine or settings.weights or "embedded model"
            candidates = [_candidate(str(name), opened(asked.engine, None))]
        if asked.against:
            candidates.append(_candidate(f"{asked.against} (against)", opened(asked.against, None)))
        speeds = measure_speed(candidates, asked.frame, asked.repeats)
        streams = measure_streams(candidates, asked.frame)
        engines = {c.name: c.detector.spec for c in candidates}
        facts = machine_facts()
    if asked.json:
        show(json.dumps(document(speeds, streams, engines, facts, asked.frame), indent=2))
    else:
        _report(speeds, streams, engines, facts, asked.frame)


def document(
    speeds: list[Speed],
    streams: Mapping[str, float],
    engines: Mapping[str, EngineSpec],
    facts: dict[str, Json],
    size: tuple[int, int],
) -> Json:
    """Return what `bench --json` prints, as described in yolotrt_core/schemas/bench.json.

    Args:
        streams: frames per second of each in a continuous stream. engines: the specs. size: (height, width) of frames.
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
    show()
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
    show()
    steps = [(s.name, ", ".join(f"{k} {v:.3f}" for k, v in s.steps_ms.items())) for s in speeds]
    print_table(("what", "ms by step"), steps)
    if len(speeds) == 2 and speeds[1].name.endswith("(against)"):
        ratio = speeds[0].end_to_end.p50_ms / speeds[1].end_to_end.p50_ms
        alone = speeds[0].engine.p50_ms / speeds[1].engine.p50_ms
        more = streams[speeds[0].name] / streams[speeds[1].name]
        times = f"ms of engine {alone:.3f}, of frames to boxes {ratio:.3f}"
        show(f"\nfirst / second: {times}; images/s of stream {more:.3f}")


def _candidate(name: str, detector: Detector) -> Candidate:
    from yolotrt_core.benchmark.throughput import Candidate

    profiles = detector.spec.profiles
    shape = detector.spec.model.inputs[0].shape
    batch = profiles[0].opt[0] if profiles else int(shape[0])
    return Candidate(name, detector, batch)
