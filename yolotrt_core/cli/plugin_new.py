"""`plugin.new`: create a plugin from a template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import invoke

from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.task_factory import Given, make_task
from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.options import option, resolve_settings
from yolotrt_core.plugin.registered import KINDS, Kind
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.scaffold.writer import write_plugin


@dataclass(frozen=True, eq=False, repr=False)
class PluginSettings:
    """Name, kind and folder of a new plugin."""

    name: str = option("", positional=True, help="Name of the stage, used for `--exporter NAME` and its flags")
    kind: Kind | None = option(None, help="Kind of the stage", default_text="required")
    out: Path = option(Path(), metavar="DIR", default_text="the current one", help="Folder for the plugin")


def collection(registry: Registry) -> invoke.Collection:
    """Make the `plugin` tasks."""
    made = invoke.Collection("plugin")
    summary = (
        "Create a plugin: a small package with a working stage, its options, tests and README.\n\n"
        "Example: plugin.new polish --kind pass"
    )

    def body(given: Given) -> None:
        asked = resolve_settings(PluginSettings, given)
        kind, name = asked.kind, asked.name
        if kind is None:
            raise UsageError("`plugin.new` needs the kind of stage", hint=f"pass `--kind {'|'.join(KINDS)}`")
        for other, named in registry.stages.items():  # flags and recipe tables are named by stage, not by kind
            if name in named:
                raise UsageError(
                    f"there is already {'an' if other == 'exporter' else 'a'} {other} named `{name}`, "
                    f"of `{named[name].dist}`",
                    hint="choose another name",
                )
        folder = write_plugin(name, kind, asked.out)
        show(folder)

    made.add_task(make_task("plugin.new", summary, [PluginSettings], body))
    return made
