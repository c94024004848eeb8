"""`plugins`: what is installed, with its options, and what is broken."""

from __future__ import annotations

import json
from typing import Any

from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task, option_help
from yolotrt_core.plugin.diagnostics import health
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.types import Json


def task(stages: Registry) -> Any:
    """Make the `plugins` task."""
    flags = (
        Flag("options", "List the options of every stage too", switch=True),
        Flag("json", "Print one JSON document, see yolotrt_core/schemas/plugins.json", switch=True),
    )

    def body(given: Given) -> None:
        if given["json"]:
            print(json.dumps(document(stages), indent=2))
        else:
            _print(stages, given["options"])

    return make_task("plugins", "List installed stages, their versions and options, and broken plugins.", flags, body)


def document(stages: Registry) -> Json:
    """Return what `plugins --json` prints; its form is in yolotrt_core/schemas/plugins.json."""
    return {
        "schema": 1,
        "stages": [_stage(found) for named in stages.stages.values() for found in named.values()],
        "broken": [
            {"plugin": b.plugin, "distribution": b.dist, "version": b.version, "error": b.error} for b in stages.broken
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
        "options": [{"flag": o.flag, "help": option_help(o)} for o in found.options],
    }


def _print(stages: Registry, with_options: bool) -> None:
    found = [r for named in stages.stages.values() for r in named.values()]
    rows = []
    for r in found:
        can = health(r)
        rows.append((r.kind, r.name, f"{r.dist} {r.version}", "yes" if can.ok else f"no: {can.reason}"))
    print_table(("kind", "name", "distribution", "usable here"), rows)
    if with_options:
        print()
        print_table(("option", "meaning"), [(o.flag, option_help(o)) for r in found for o in r.options])
    if stages.broken:
        print()
        broken = [(b.plugin, f"{b.dist} {b.version}", b.error) for b in stages.broken]
        print_table(("broken plugin", "distribution", "error"), broken)
