"""Runners of each kind of stage in a step's folder: pass the inputs, check and keep the outputs, return facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.calibration.images import Batches
from yolotrt_core.calibration.ranges import add_origin, read_ranges
from yolotrt_core.errors import StageError
from yolotrt_core.export import parity
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.inference.input_shapes import refuse_shape, refuse_sizes
from yolotrt_core.pipeline.output_checks import check_engine, check_export, check_pass, check_ranges, plugin_error
from yolotrt_core.pipeline.step import ENGINE_SPEC_FILE, SPEC_FILE
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE
from yolotrt_core.serialization import from_json, to_json
from yolotrt_core.types import Calibration, EngineSpec, Fit, Json, ModelSpec, OnnxModel

if TYPE_CHECKING:
    from yolotrt_core.pipeline.step import Plan, Step
    from yolotrt_core.plugin.registry import Registry
    from yolotrt_core.store.store import Store


# Of calibration images, for the record.
_PREPROCESSING: Mapping[Fit, str] = {
    "letterbox": "grey 114, bilinear",
    "crop": "central square, bilinear",
}

Work = Callable[["Plan", "Step", Path, Path, "Store", "Registry"], Mapping[str, Json]]


def _export(steps: Plan, step: Step, given: Path, out: Path, store: Store, registry: Registry) -> Mapping[str, Json]:
    spec = step.stage.export(steps.resolved.source, step.request, step.options, out)
    spec = check_export(step, spec, out, registry)
    if sha256_of(steps.resolved.source.path) != steps.resolved.source.sha256:
        raise StageError(f"`{steps.resolved.source.path}` changed while it was being exported", hint="build again")
    _write(out / SPEC_FILE, spec)
    return {"source": steps.resolved.source.name}


def _pass(steps: Plan, step: Step, given: Path, out: Path, store: Store, registry: Registry) -> Mapping[str, Json]:
    made = step.stage.apply(_model(step, given, store), _calibration(given), step.request, step.options, out)
    spec, facts = check_pass(step, made, out, registry)
    _write(out / SPEC_FILE, spec)
    return dict(facts)


def _calibrate(steps: Plan, step: Step, given: Path, out: Path, store: Store, registry: Registry) -> Mapping[str, Json]:
    size = (step.request.height, step.request.width)
    model = _model(step, given, store)
    spec = model.spec
    batches = Batches(steps.images, size, spec.layout, spec.channel_order, spec.fit) if steps.images else None
    stream: Iterator[Any] = iter(batches) if batches else iter(())
    method = step.stage.calibrate(model, stream, step.request, step.options, out)
    check_ranges(step, method, out)
    if batches is None:
        return {"method": method}
    add_origin(
        out / RANGES_FILE,
        images={"count": batches.seen, "sha256": batches.chosen.sha256, "seed": batches.chosen.seed},
        preprocessing={
            "height": size[0],
            "width": size[1],
            spec.fit: f"{_PREPROCESSING[spec.fit]}, {spec.channel_order.upper()} 0..1",
        },
        tools=step.tools,
    )
    return {"method": method, **batches.facts()}


def _parity(steps: Plan, step: Step, given: Path, out: Path, store: Store, registry: Registry) -> Mapping[str, Json]:
    model = _model(step, given, store)
    spec = EngineSpec(model=model.spec, precision="fp32", builder=step.identity.name, tools=step.tools)
    with step.stage.open(model.path, spec, step.stage.Options(), store.side_cache()) as session:
        facts = parity.check(session, given / "reference", step.options)
    (out / "parity.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def _build(steps: Plan, step: Step, given: Path, out: Path, store: Store, registry: Registry) -> Mapping[str, Json]:
    model = _model(step, given, store)
    refuse_sizes(step.request, model.spec.size_step)
    refuse_shape(step.request, model.spec.task)
    spec = step.stage.build(model, _calibration(given), step.request, step.options, out, store.side_cache())
    engine = out / step.stage.engine_file
    spec = replace(check_engine(step, spec, engine), onnx_sha256=model.sha256, engine_sha256=sha256_of(engine))
    _write(out / ENGINE_SPEC_FILE, spec)
    facts = out / "facts.json"
    try:
        reported = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
    except ValueError as err:
        raise plugin_error(step, f"wrote invalid JSON in `{facts.name}`: {err}") from err
    if not isinstance(reported, dict):
        raise plugin_error(step, f"wrote a `{facts.name}` that does not hold a JSON object")
    facts.unlink(missing_ok=True)
    return {"size": engine.stat().st_size, **reported}


def _model(step: Step, given: Path, store: Store) -> OnnxModel:
    # Stages see the name that tools expect, whatever the input is called in the key.
    path = (given / "onnx").rename(given / ONNX_FILE)
    spec = from_json(ModelSpec, json.loads((given / "spec").read_text(encoding="utf-8")))
    return OnnxModel(path, sha256_of(path), spec)


def _calibration(given: Path) -> Calibration | None:
    path = given / "ranges"
    if not path.is_file():
        return None
    path = path.rename(given / RANGES_FILE)
    return Calibration(path, sha256_of(path), read_ranges(path).method)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(to_json(value), indent=1, sort_keys=True) + "\n", encoding="utf-8")


WORK: Mapping[str, Work] = {
    "exporter": _export,
    "pass": _pass,
    "calibrator": _calibrate,
    "parity": _parity,
    "builder": _build,
}
