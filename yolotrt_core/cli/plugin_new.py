"""`plugin.new`: start a plugin of one's own."""

from __future__ import annotations

import invoke

from yolotrt_core.cli.tasks import Flag, Given, make_task
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import user_path
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.scaffold.writer import write_plugin


def collection(stages: Registry) -> invoke.Collection:
    """Make the `plugin` tasks."""
    made = invoke.Collection("plugin")
    summary = (
        "Write a new plugin: a small package with a working stage, its options, tests and README.\n\n"
        "Example: plugin.new polish --kind pass"
    )
    flags = (
        Flag("name", "Name of the stage, as `--exporter NAME` or its flags will have it", positional=True),
        Flag("kind", "|".join(KINDS)),
        Flag("out", "Folder to put it in (default: the current one)"),
    )

    def body(given: Given) -> None:
        kind, name = given["kind"], given["name"]
        if kind is None:
            raise UsageError("`plugin.new` needs the kind of stage", hint=f"pass `--kind {'|'.join(KINDS)}`")
        for other, named in stages.stages.items():  # flags and recipe tables are by name, whatever the kind
            if name in named:
                raise UsageError(
                    f"there is already {'an' if other == 'exporter' else 'a'} {other} named `{name}`, "
                    f"of `{named[name].dist}`",
                    hint="choose another name",
                )
        folder = write_plugin(name, kind, user_path(given["out"] or "."))
        print(folder)

    made.add_task(make_task("plugin.new", summary, flags, body))
    return made
