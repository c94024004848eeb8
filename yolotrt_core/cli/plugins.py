"""`plugins`: installed stages with their options, and broken plugins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.plugin.diagnostics import health
from yolotrt_core.plugin.options import option, resolve_settings
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.types import Json


@dataclass(frozen=True, eq=False, repr=False)
class PluginsSettings:
    """Settings of `plugins`."""

    options: bool = option(False, switch=True, help="Options of every stage")
    json: bool = json_option("plugins")


def task(registry: Registry) -> Any:
    """Make the `plugins` task."""

    def body(given: Given) -> None:
        asked = resolve_settings(PluginsSettings, given)
        if asked.json:
            show(json.dumps(document(registry), indent=2))
        else:
            _print(registry, asked.options)

    summary = "List installed stages, their versions and options, and broken plugins."
    return make_task("plugins", summary, [PluginsSettings], body)


def document(registry: Registry) -> Json:
    """Return what `plugins --json` prints, as described in yolotrt_core/schemas/plugins.json."""
    return {
        "schema": 1,
        "stages": [_stage(found) for named in registry.stages.values() for found in named.values()],
        "broken": [
            {"plugin": b.plugin, "distribution": b.dist, "version": b.version, "error": b.error}
            for b in registry.broken
        ],
    }


def _stage(found: Registered) -> dict[str, Json]:
    can = health(found)
    return {
        "kind": found.kind,
        "name": found.name,
        "distribution": found.dist,
        "version": found.version,
        "available": can.ok,
        "reason": can.reason,
        "install": can.install,
        "options": [{"flag": o.flag, "help": o.description} for o in found.options],
    }


def _print(registry: Registry, with_options: bool) -> None:
    found = [r for named in registry.stages.values() for r in named.values()]
    rows = []
    for r in found:
        can = health(r)
        rows.append((r.kind, r.name, f"{r.dist} {r.version}", "yes" if can.ok else f"no: {can.reason}"))
    print_table(("kind", "name", "distribution", "usable here"), rows)
    if with_options:
        show()
        print_table(("option", "meaning"), [(o.usage, o.description) for r in found for o in r.options])
    if registry.broken:
        show()
        broken = [(b.plugin, f"{b.dist} {b.version}", b.error) for b in registry.broken]
        print_table(("broken plugin", "distribution", "error"), broken)
