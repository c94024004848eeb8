"""`artifacts.*`: look into the store, explain it, check it, clean it, take things out."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invoke

from yolotrt_core.build import executor
from yolotrt_core.build.settings import plan_build
from yolotrt_core.build.step import ENGINE_SPEC_FILE
from yolotrt_core.calibration.ranges import ranges_from_json
from yolotrt_core.calibration.tensorrt_cache import CALIBRATORS, cache_from_ranges, version_number
from yolotrt_core.cli import build
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task, stage_flags
from yolotrt_core.console.text import counted, nearest
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.files.atomic import refuse_unwritable
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.files.paths import user_path
from yolotrt_core.inference.engine_file import hand_out
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE
from yolotrt_core.serialization import to_json
from yolotrt_core.store.action import Record
from yolotrt_core.store.errors import reporting
from yolotrt_core.store.location import STORE_VARIABLE, open_store
from yolotrt_core.types import Json

if TYPE_CHECKING:
    from yolotrt_core.store.lineage import Lineage
    from yolotrt_core.store.store import Store

_log = logging.getLogger(__name__)

_STORE = next(f for f in build.SETTINGS if f.name == "store")
_JSON = Flag("json", "Print one JSON document, see yolotrt_core/schemas/artifacts.json", switch=True)
_KEY = Flag("key", "First digits of a key, or a name, as `artifacts.list` shows them", positional=True)
_COLUMNS = ("key", "stage", "plugin", "made", "seconds", "MB")
_KINDS = ("onnx", "ranges", "cache", "engine")


def collection(stages: Registry) -> invoke.Collection:
    """Make the `artifacts` tasks."""
    chosen = [*build.SETTINGS, *build.PARITY_FLAGS, *stage_flags(stages, KINDS)]
    made = invoke.Collection("artifacts")
    tasks = (
        make_task("artifacts.list", "List what the store holds.", (_STORE, _JSON), _list),
        make_task(
            "artifacts.show",
            "Show one artifact and where it comes from, back to the model.",
            (_KEY, _STORE, _JSON),
            _show,
        ),
        make_task(
            "artifacts.explain",
            "Say for each stage of a build whether it would run, and what differs from the nearest artifact.",
            (*chosen, Flag("material", "Print all that enters each key", switch=True), _JSON),
            lambda given: _explain(stages, given),
        ),
        make_task(
            "artifacts.verify",
            "Read everything in the store and compare it with its digests.",
            (_STORE, _JSON),
            _verify,
        ),
        make_task(
            "artifacts.repair",
            "Delete what `verify` finds damaged; refuses while something builds.",
            (_STORE, _JSON),
            _repair,
        ),
        make_task(
            "artifacts.gc",
            "Delete what no named engine and nothing young needs.",
            (
                Flag("keep_days", "Keep what is younger, in days (default 30)"),
                Flag("dry_run", "Only say what would go", switch=True),
                _STORE,
                _JSON,
            ),
            _gc,
        ),
        make_task(
            "artifacts.export",
            "Copy what a build of these settings made out of the store.",
            (
                *chosen,
                Flag(
                    "kind",
                    "onnx|ranges|cache|engine: what to copy; onnx is the graph the engine is built from, cache the "
                    "ranges as a TensorRT 8 or 10 calibration cache",
                ),
                Flag("cache_version", "The TensorRT that will read the cache, as 10.3.0: it ignores another's"),
                Flag("cache_algorithm", "entropy2|minmax: the calibrator class that will read it (default entropy2)"),
                Flag("out", "Folder to copy to"),
                _JSON,
            ),
            lambda given: _export(stages, given),
        ),
    )
    for task in tasks:
        made.add_task(task)
    return made


def _opened(given: Given) -> Store:
    return open_store(build.path_from_text(given["store"]))


def _existing(given: Given) -> Store:
    """Open the store to look into; one that was named must be there, or a misspelt path would look like an empty one.

    Raises:
        ArtifactError: there is no store in the folder that was named.
    """
    store = _opened(given)
    named = "`--store`" if given["store"] else STORE_VARIABLE if os.environ.get(STORE_VARIABLE) else None
    with reporting(store.root):
        if named is None or store.exists():
            return store
        root = store.root
        what = (
            "the folder holds none" if root.is_dir() else "it is a file" if root.exists() else "there is no such folder"
        )
    raise ArtifactError(
        f"{named} expects an artifact store, but `{store.root}` is none: {what}",
        hint="correct the path; the first `build` with it would make the store there",
    )


def _list(given: Given) -> None:
    store = _existing(given)
    names: dict[str, list[str]] = {}
    for name, key in store.refs().items():
        names.setdefault(key, []).append(name)
    records = sorted(store.records(), key=lambda r: r.created)
    if given["json"]:
        shown = [{**_summary(r), "names": list(names.get(r.key, []))} for r in records]
        print(json.dumps({"schema": 1, "artifacts": shown}, indent=2))
        return
    if not sys.stdout.isatty():
        print_table((*_COLUMNS, "name"), [(*_cells(r), " ".join(names.get(r.key, []))) for r in records])
        return
    # Names are long and an artifact can have many: beside all the rest they would leave no room on a screen.
    print_table(_COLUMNS, map(_cells, records), whole=_COLUMNS)
    print()
    named = [(r.short_key, name) for r in records for name in names.get(r.key, [])]
    print_table(("key", "name"), named, whole=("key",))


def _cells(record: Record) -> tuple[str, ...]:
    """Return a record's row under `_COLUMNS`."""
    size = _megabytes(_size(record))
    return (record.short_key, _stage(record), _plugin(record), _time(record), f"{record.seconds:.2f}", size)


def _time(record: Record) -> str:
    """Return when a record was made as people write it, UTC: 2026-11-25 00:21:39."""
    return record.created[:19].replace("T", " ")


def _show(given: Given) -> None:
    store = _existing(given)
    lineage = store.lineage(store.resolve(given["key"]))
    if given["json"]:
        print(json.dumps({"schema": 1, **_lineage_json(lineage)}, indent=2))
        return
    record = lineage.record
    rows = [("key", record.key), ("stage", _stage(record)), ("plugin", _plugin(record)), ("made", _time(record))]
    rows += [("seconds", f"{record.seconds:.2f}")]
    rows += [
        (f"output {name}", f"{blob.sha256[:12]}  {_megabytes(blob.size)} MB") for name, blob in record.outputs.items()
    ]
    rows += [(f"fact {name}", json.dumps(to_json(value))) for name, value in record.facts.items()]
    for part in ("request", "options", "tools"):
        values = record.action.get(part)
        rows += [(f"{part} {k}", json.dumps(v)) for k, v in values.items()] if isinstance(values, dict) else []
    print_table(("", ""), rows)
    print("\nmade from")
    for line in _lineage_lines(lineage, 0):
        print(line)


def _lineage_lines(lineage: Lineage, depth: int) -> list[str]:
    lines = []
    for name, origin in lineage.inputs.items():
        indent = "  " * (depth + 1)
        if isinstance(origin, str):
            lines.append(f"{indent}{name}: {origin[:12]} (from outside the store)")
        else:
            lines.append(f"{indent}{name}: {_stage(origin.record)} {_plugin(origin.record)} {origin.record.short_key}")
            lines += _lineage_lines(origin, depth + 1)
    return lines


def _lineage_json(lineage: Lineage) -> dict[str, Json]:
    inputs: dict[str, Json] = {}
    for name, origin in lineage.inputs.items():
        inputs[name] = origin if isinstance(origin, str) else _lineage_json(origin)
    shown = to_json(lineage.record)
    return {"record": shown, "inputs": inputs}


def _explain(stages: Registry, given: Given) -> None:
    store = _opened(given)
    planned = plan_build(build.build_settings(stages, given), store=store, stages=stages)
    steps: list[dict[str, Json]] = []
    for step, action, record in executor.walk(planned, store):
        entry: dict[str, Json] = {"step": step.label, "plugin": step.identity.name, "outcome": "found"}
        if action is None:
            entry |= {"outcome": "unknown", "reason": "an earlier stage would run first, so its key is not known yet"}
        else:
            entry["key"] = action.key
            if given["material"]:
                entry["material"] = action.material()
            if record is None:
                near = store.nearest(action)
                entry["outcome"] = "would run"
                entry["reason"] = "never run in this store" if near is None else f"differs from {near[0].short_key}"
                differences = near[1] if near else ()
                entry["differences"] = [{"part": d.path, "stored": d.found, "wanted": d.wanted} for d in differences]
        steps.append(entry)
    if given["json"]:
        print(json.dumps({"schema": 1, "steps": steps}, indent=2))
        return
    rows = [
        (str(s["step"]), str(s["plugin"]), str(s["outcome"]), str(s.get("key", ""))[:12], str(s.get("reason", "")))
        for s in steps
    ]
    print_table(("step", "plugin", "outcome", "key", "why"), rows)
    for s in steps:
        differences_shown = s.get("differences")
        if isinstance(differences_shown, list) and differences_shown:
            print(f"\n{s['step']}:")
            cells = [
                (str(d["part"]), str(d["stored"]), str(d["wanted"])) for d in differences_shown if isinstance(d, dict)
            ]
            print_table(("part of the key", "stored", "now"), cells)
        if "material" in s:
            print(f"\n{s['step']}:\n{json.dumps(s['material'], indent=2)}")


def _verify(given: Given) -> None:
    report = _existing(given).verify()
    _print_report(given, report)
    if not report.ok:
        raise ArtifactError(
            "the store is damaged", hint="`artifacts.repair` deletes what is; the next build makes it again"
        )


def _repair(given: Given) -> None:
    report = _existing(given).repair()
    _print_report(given, report)
    if report.damage and not given["json"]:
        print(f"\ndeleted {counted(len(report.damage), 'damaged thing')}; the next build makes again what it needs")


def _gc(given: Given) -> None:
    text = given["keep_days"] or "30"
    try:
        days = float(text)
    except ValueError:
        raise UsageError(f"`--keep-days` expects a number of days, found `{text}`") from None
    report = _existing(given).gc(days, given["dry_run"])
    _print_report(given, report, report.records)


def _print_report(given: Given, report: Any, gone: Sequence[Record] | None = None) -> None:
    """Print what `verify`, `repair` or `gc` found.

    Args:
        gone: the records of gc's report.
    """
    shown = to_json(report)
    assert isinstance(shown, dict)
    if gone is not None:
        shown["records"] = [_summary(record) for record in gone]
    if given["json"]:
        print(json.dumps({"schema": 1, **shown}, indent=2))
        return
    print_table(("", ""), [(name.replace("_", " "), _report_cell(name, value)) for name, value in shown.items()])
    for name, value in shown.items():
        if isinstance(value, list) and value:
            print(f"\n{name.replace('_', ' ')}:")
            if name == "records" and gone:
                print_table(_COLUMNS, map(_cells, gone), whole=_COLUMNS)
                continue
            for item in value:
                print("  " + ("  ".join(map(str, item.values())) if isinstance(item, Mapping) else str(item)))


def _report_cell(name: str, value: Json) -> str:
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{_megabytes(value)} MB" if name == "size" and isinstance(value, int) else str(value)


def _export(stages: Registry, given: Given) -> None:
    kind, folder = given["kind"], given["out"]
    if kind is None:
        raise UsageError("`--kind` is needed: what to copy", hint="pass `--kind onnx`, `ranges`, `cache` or `engine`")
    if kind not in _KINDS:
        raise UsageError(
            f"`--kind` expects onnx, ranges, cache or engine, found `{kind}`", hint=nearest(str(kind), _KINDS)
        )
    if not folder:
        raise UsageError("`--out` is needed: the folder to copy to")
    refuse_unwritable(user_path(folder))
    store = _opened(given)
    settings = build.build_settings(stages, given)
    planned = plan_build(settings, store=store, stages=stages)
    walked = list(executor.walk(planned, store))
    missing = [step.label for step, _, record in walked if record is None]
    if missing:
        raise UsageError(
            f"a build of these settings is not in the store: stage `{missing[0]}` has not run",
            hint="run `build` with the same settings first; `artifacts.explain` says what differs",
        )
    found_in = {"ranges": RANGES_FILE, "cache": RANGES_FILE, "engine": planned.builder.stage.engine_file}
    wanted = found_in.get(kind, ONNX_FILE)
    made_by = {"ranges": ("calibrator",), "cache": ("calibrator",), "engine": ("builder",)}
    kinds = made_by.get(kind, ("exporter", "pass"))
    made = [record for step, _, record in walked if record and step.kind in kinds and wanted in record.outputs]
    if not made:
        raise UsageError(f"a build of these settings has no {kind}", hint=f"precision is {planned.request.precision}")
    record = made[-1]
    target = user_path(folder) / f"{planned.source.name}-{planned.request.precision}{Path(wanted).suffix}"
    if kind == "ranges":
        target = target.with_name(f"{planned.source.name}-ranges.json")
    if kind == "cache":
        target = target.with_name(f"{planned.source.name}.cache")
    if target.is_file() and (kind == "cache" or sha256_of(target) != record.outputs[wanted].sha256):
        _log.warning("replaces `%s`", target)
    if kind == "cache":
        _write_cache(store, record, target, given)
    else:
        hand_out(store, record.outputs[wanted].sha256, target)
    if kind == "engine":
        spec = record.outputs[ENGINE_SPEC_FILE].sha256
        hand_out(store, spec, target.with_name(target.name + ".json"))
    if given["json"]:
        print(json.dumps({"schema": 1, "kind": kind, "path": str(target), "key": record.key}, indent=2))
    else:
        print(target)


def _write_cache(store: Store, record: Record, target: Path, given: Given) -> None:
    """Write the ranges of a record as the text that TensorRT's calibrators read."""
    version, algorithm = given["cache_version"], given["cache_algorithm"] or "entropy2"
    if not version:
        raise UsageError(
            "`--kind cache` needs `--cache-version`: TensorRT ignores a cache of another release",
            hint="pass the version of the TensorRT that will read it, as 10.3.0",
        )
    if algorithm not in CALIBRATORS:
        known = ", ".join(CALIBRATORS)
        raise UsageError(f"`--cache-algorithm` expects one of {known}, found `{algorithm}`")
    ranges = ranges_from_json(json.loads(store.read(record.outputs[RANGES_FILE].sha256)), RANGES_FILE)
    text = cache_from_ranges(ranges.tensors, version_number(version), CALIBRATORS[algorithm])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as err:
        raise ArtifactError(
            f"cannot write `{target}`: {(err.strerror or str(err)).lower()}", hint="choose another folder with `--out`"
        ) from err


def _summary(record: Record) -> dict[str, Json]:
    return {
        "key": record.key,
        "stage": _stage(record),
        "plugin": _plugin(record),
        "created": record.created,
        "seconds": record.seconds,
        "size": _size(record),
    }


def _stage(record: Record) -> str:
    return str(record.action.get("stage", "?"))


def _plugin(record: Record) -> str:
    plugin = record.action.get("plugin")
    return str(plugin.get("name", "?")) if isinstance(plugin, dict) else "?"


def _size(record: Record) -> int:
    return sum(blob.size for blob in record.outputs.values())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"
