"""`artifacts.*`: list, show, explain, verify, repair, clean up and export the content of the store."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import invoke

from yolotrt_core.calibration.tensorrt_cache import CALIBRATORS, cache_from_ranges, version_number
from yolotrt_core.cli.recipe import RecipeSettings, StoreSettings, build_groups, build_settings
from yolotrt_core.cli.stdio import results, show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.files.paths import refuse_unwritable, sidecar_path
from yolotrt_core.pipeline.build_options import resolve
from yolotrt_core.pipeline.step import ENGINE_SPEC_FILE
from yolotrt_core.plugin.options import option, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE
from yolotrt_core.serialization import to_json
from yolotrt_core.store.action import Record
from yolotrt_core.store.location import STORE_VARIABLE, open_store
from yolotrt_core.types import Json

if TYPE_CHECKING:
    from yolotrt_core.store.lineage import Lineage
    from yolotrt_core.store.store import Store

_log = logging.getLogger(__name__)

_COLUMNS = ("key", "stage", "plugin", "made", "seconds", "MB")

S = TypeVar("S")


@dataclass(frozen=True, eq=False, repr=False)
class ListSettings(StoreSettings):
    """Which store, and how to print."""

    json: bool = json_option("artifacts")


@dataclass(frozen=True, eq=False, repr=False)
class ShowSettings(ListSettings):
    """Which artifact to show."""

    key: str = option("", positional=True, help="First digits of a key, or a name, as `artifacts.list` shows them")


@dataclass(frozen=True, eq=False, repr=False)
class GcSettings(ListSettings):
    """What to remove."""

    keep_days: float = option(30.0, unit="days", default_text="30", help="Keep artifacts newer than this")
    dry_run: bool = option(False, switch=True, help="Dry run: only report what would be removed")


@dataclass(frozen=True, eq=False, repr=False)
class ExplainSettings(RecipeSettings):
    """What to explain."""

    material: bool = option(False, switch=True, common=True, help="Print the full material of each key")
    json: bool = json_option("artifacts")


@dataclass(frozen=True, eq=False, repr=False)
class ExportSettings(RecipeSettings):
    """What to copy, and where."""

    kind: Literal["onnx", "ranges", "cache", "engine"] | None = option(
        None, common=True, default_text="required",
        help="What to copy; onnx: the graph that the engine is built from, cache: the ranges as a TensorRT 8 or 10 "
        "calibration cache",
    )  # fmt: skip
    cache_version: str | None = option(
        None, default_text="none", metavar="VERSION",
        help="TensorRT version that will read the cache, for example 10.3.0; it ignores caches of other versions",
    )  # fmt: skip
    cache_algorithm: Literal["entropy2", "minmax"] = option(
        "entropy2", help="Calibrator class that will read the cache"
    )
    out: Path | None = option(None, common=True, metavar="DIR", default_text="required", help="Folder to copy to")
    json: bool = json_option("artifacts")


def collection(registry: Registry) -> invoke.Collection:
    """Make the `artifacts` tasks."""

    def simple(name: str, summary: str, settings: type[S], work: Callable[[S], None]) -> Any:
        return make_task(name, summary, [settings], lambda given: work(resolve_settings(settings, given)))

    def with_build(
        name: str, summary: str, settings: type[RecipeSettings], work: Callable[[Registry, Given], None]
    ) -> Any:
        return make_task(name, summary, build_groups(registry, settings), lambda given: work(registry, given))

    made = invoke.Collection("artifacts")
    explains = "Explain for each stage of a build whether it would run, and how it differs from the nearest artifact."
    tasks = (
        simple("artifacts.list", "List the artifacts in the store.", ListSettings, _list),
        simple("artifacts.show", "Show one artifact and its lineage, back to the model.", ShowSettings, _show),
        with_build("artifacts.explain", explains, ExplainSettings, _explain),
        simple("artifacts.verify", "Verify the digests of everything in the store.", ListSettings, _verify),
        simple(
            "artifacts.repair",
            "Delete the corrupted entries that `verify` finds; refused during a build.",
            ListSettings,
            _repair,
        ),
        simple(
            "artifacts.gc",
            "Remove artifacts not referenced by a named engine or a recent build.",
            GcSettings,
            _gc,
        ),
        with_build("artifacts.export", "Copy an artifact of a build out of the store.", ExportSettings, _export),
    )
    for task in tasks:
        made.add_task(task)
    return made


def _existing(settings: ListSettings) -> Store:
    """Open the store for reading; a named one must exist, or a misspelt path would look like an empty store.

    Raises:
        ArtifactError: the named folder does not contain a store.
    """
    store = open_store(settings.store)
    named = "`--store`" if settings.store else STORE_VARIABLE if os.environ.get(STORE_VARIABLE) else None
    with store.reporting():
        if named is None or store.exists():
            return store
        root = store.root
        what = (
            "the folder is not a store"
            if root.is_dir()
            else "it is a file"
            if root.exists()
            else "the folder does not exist"
        )
    raise ArtifactError(
        f"{named} expects an artifact store, found `{store.root}`: {what}",
        hint="correct the path; the first `build` with it creates the store",
    )


def _list(settings: ListSettings) -> None:
    store = _existing(settings)
    names: dict[str, list[str]] = {}
    for name, key in store.refs().items():
        names.setdefault(key, []).append(name)
    records = sorted(store.records(), key=lambda r: r.created)
    if settings.json:
        shown = [{**_summary(r), "names": list(names.get(r.key, []))} for r in records]
        show(json.dumps({"schema": 1, "artifacts": shown}, indent=2))
        return
    if not results().isatty():
        print_table((*_COLUMNS, "name"), [(*_cells(r), " ".join(names.get(r.key, []))) for r in records])
        return
    # Names are long and an artifact can have many: in one table they would not fit on a screen.
    print_table(_COLUMNS, map(_cells, records), whole=_COLUMNS)
    show()
    named = [(r.short_key, name) for r in records for name in names.get(r.key, [])]
    print_table(("key", "name"), named, whole=("key",))


def _cells(record: Record) -> tuple[str, ...]:
    """Return a record's row under `_COLUMNS`."""
    size = _megabytes(_size(record))
    return (record.short_key, _stage(record), _plugin(record), _time(record), f"{record.seconds:.2f}", size)


def _time(record: Record) -> str:
    """Format the creation time of a record, UTC: 2026-11-25 00:21:39."""
    return record.created[:19].replace("T", " ")


def _show(settings: ShowSettings) -> None:
    store = _existing(settings)
    lineage = store.lineage(store.resolve(settings.key))
    if settings.json:
        show(json.dumps({"schema": 1, **_lineage_json(lineage)}, indent=2))
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
    show("\nmade from")
    for line in _lineage_lines(lineage, 0):
        show(line)


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


def _explain(registry: Registry, given: Given) -> None:
    from yolotrt_core.pipeline import executor
    from yolotrt_core.pipeline.plan import plan_build

    asked = resolve_settings(ExplainSettings, given)
    store = open_store(asked.store)
    planned = plan_build(resolve(build_settings(registry, given), registry), registry)
    steps: list[dict[str, Json]] = []
    for step, action, record in executor.walk(planned, store):
        entry: dict[str, Json] = {"step": step.label, "plugin": step.identity.name, "outcome": "found"}
        if action is None:
            entry |= {"outcome": "unknown", "reason": "depends on a stage that would run first"}
        else:
            entry["key"] = action.key
            if asked.material:
                entry["material"] = action.material()
            if record is None:
                near = store.nearest(action)
                entry["outcome"] = "would run"
                entry["reason"] = "not in this store" if near is None else f"differs from {near[0].short_key}"
                differences = near[1] if near else ()
                entry["differences"] = [{"part": d.path, "stored": d.found, "wanted": d.wanted} for d in differences]
        steps.append(entry)
    if asked.json:
        show(json.dumps({"schema": 1, "steps": steps}, indent=2))
        return
    rows = [
        (str(s["step"]), str(s["plugin"]), str(s["outcome"]), str(s.get("key", ""))[:12], str(s.get("reason", "")))
        for s in steps
    ]
    print_table(("step", "plugin", "outcome", "key", "why"), rows)
    for s in steps:
        differences_shown = s.get("differences")
        if isinstance(differences_shown, list) and differences_shown:
            show(f"\n{s['step']}:")
            cells = [
                (str(d["part"]), str(d["stored"]), str(d["wanted"])) for d in differences_shown if isinstance(d, dict)
            ]
            print_table(("part of the key", "stored", "now"), cells)
        if "material" in s:
            show(f"\n{s['step']}:\n{json.dumps(s['material'], indent=2)}")


def _verify(settings: ListSettings) -> None:
    report = _existing(settings).verify()
    _print_report(settings, report)
    if not report.ok:
        raise ArtifactError(
            "the store is corrupted",
            hint="`artifacts.repair` deletes the corrupted entries; the next build rebuilds them",
        )


def _repair(settings: ListSettings) -> None:
    report = _existing(settings).repair()
    _print_report(settings, report)
    if report.damage and not settings.json:
        entries = "entry" if len(report.damage) == 1 else "entries"
        show(f"\ndeleted {len(report.damage)} corrupted {entries}; the next build rebuilds what it needs")


def _gc(settings: GcSettings) -> None:
    report = _existing(settings).gc(settings.keep_days, settings.dry_run)
    _print_report(settings, report, report.records)


def _print_report(settings: ListSettings, report: Any, gone: Sequence[Record] | None = None) -> None:
    """Print the report of `verify`, `repair` or `gc`.

    Args:
        gone: the records of gc's report.
    """
    shown = to_json(report)
    assert isinstance(shown, dict)
    if gone is not None:
        shown["records"] = [_summary(record) for record in gone]
    if settings.json:
        show(json.dumps({"schema": 1, **shown}, indent=2))
        return
    print_table(("", ""), [(name.replace("_", " "), _report_cell(name, value)) for name, value in shown.items()])
    for name, value in shown.items():
        if isinstance(value, list) and value:
            show(f"\n{name.replace('_', ' ')}:")
            if name == "records" and gone:
                print_table(_COLUMNS, map(_cells, gone), whole=_COLUMNS)
                continue
            for item in value:
                show("  " + ("  ".join(map(str, item.values())) if isinstance(item, Mapping) else str(item)))


def _report_cell(name: str, value: Json) -> str:
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{_megabytes(value)} MB" if name == "size" and isinstance(value, int) else str(value)


def _export(registry: Registry, given: Given) -> None:
    from yolotrt_core.pipeline import executor
    from yolotrt_core.pipeline.plan import plan_build

    asked = resolve_settings(ExportSettings, given)
    kind, folder = asked.kind, asked.out
    if kind is None:
        raise UsageError("`--kind` is required", hint="pass `--kind onnx`, `ranges`, `cache` or `engine`")
    if folder is None:
        raise UsageError("`--out` is required: the folder to copy to")
    refuse_unwritable(folder)
    store = open_store(asked.store)
    planned = plan_build(resolve(build_settings(registry, given), registry), registry)
    walked = list(executor.walk(planned, store))
    missing = [step.label for step, _, record in walked if record is None]
    if missing:
        raise UsageError(
            f"a build with these settings is not in the store: stage `{missing[0]}` has not run",
            hint="run `build` with the same settings first; `artifacts.explain` shows the difference",
        )
    found_in = {"ranges": RANGES_FILE, "cache": RANGES_FILE, "engine": planned.resolved.builder.stage.engine_file}
    wanted = found_in.get(kind, ONNX_FILE)
    made_by = {"ranges": ("calibrator",), "cache": ("calibrator",), "engine": ("builder",)}
    kinds = made_by.get(kind, ("exporter", "pass"))
    made = [record for step, _, record in walked if record and step.kind in kinds and wanted in record.outputs]
    if not made:
        raise UsageError(f"a build with these settings has no {kind}", hint=f"precision is {planned.request.precision}")
    record = made[-1]
    target = folder / f"{planned.resolved.source.name}-{planned.request.precision}{Path(wanted).suffix}"
    if kind == "ranges":
        target = target.with_name(f"{planned.resolved.source.name}-ranges.json")
    if kind == "cache":
        target = target.with_name(f"{planned.resolved.source.name}.cache")
    if target.is_file() and (kind == "cache" or sha256_of(target) != record.outputs[wanted].sha256):
        _log.warning("overwriting `%s`", target)
    if kind == "cache":
        _write_cache(store, record, target, asked)
    else:
        store.export_file(record.outputs[wanted].sha256, target)
    if kind == "engine":
        spec = record.outputs[ENGINE_SPEC_FILE].sha256
        store.export_file(spec, sidecar_path(target))
    if asked.json:
        show(json.dumps({"schema": 1, "kind": kind, "path": str(target), "key": record.key}, indent=2))
    else:
        show(target)


def _write_cache(store: Store, record: Record, target: Path, asked: ExportSettings) -> None:
    """Write the ranges of a record as a TensorRT calibration cache."""
    from yolotrt_core.calibration.ranges import ranges_from_json

    if not asked.cache_version:
        raise UsageError(
            "`--kind cache` needs `--cache-version`: TensorRT ignores a cache of another release",
            hint="pass the TensorRT version that will read it, for example 10.3.0",
        )
    ranges = ranges_from_json(json.loads(store.read(record.outputs[RANGES_FILE].sha256)), RANGES_FILE)
    text = cache_from_ranges(ranges.tensors, version_number(asked.cache_version), CALIBRATORS[asked.cache_algorithm])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as err:
        raise ArtifactError(
            f"cannot write `{target}`: {os_error_reason(err)}", hint="choose another folder with `--out`"
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
