"""The command line: `invoke TASK` in a clone, `yolotrt TASK` anywhere; the same tasks."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import invoke


def namespace() -> invoke.Collection:
    """Make all tasks, with the options of every installed plugin as flags."""
    import invoke

    # invoke turns bytecode caching off for everything imported later, which would compile our
    # modules anew for every command of an editable install.
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    from yolotrt_core.cli import streams

    streams.prepare()
    from yolotrt_core.cli import (
        argv,
        artifacts,
        bench,
        build,
        detect,
        doctor,
        evaluate,
        plugin_new,
        plugins,
        sensitivity,
    )
    from yolotrt_core.plugin.registry import Registry

    commands = (build, detect, evaluate, sensitivity, bench)
    stages = Registry.discover(reserved_flags=[flag for command in commands for flag in command.RESERVED])
    top = invoke.Collection("yolotrt")
    top.add_task(build.task(stages))
    top.add_task(detect.task(stages))
    top.add_task(evaluate.task(stages))
    top.add_task(sensitivity.task(stages))
    top.add_task(bench.task(stages))
    top.add_collection(artifacts.collection(stages))
    top.add_task(plugins.task(stages))
    top.add_collection(plugin_new.collection(stages))
    top.add_task(doctor.task(stages))
    argv.refuse_misread(top, argv.own_arguments(), stages.broken_words)
    return top


def program() -> invoke.Program:
    """Make the `yolotrt` program around the tasks."""
    import importlib.metadata

    import invoke

    class Config(invoke.Config):
        """invoke's settings without its files: what somebody's `~/.invoke.yaml` says is for their own tasks."""

        def load_base_conf_files(self) -> None:
            return

    return invoke.Program(
        namespace=namespace(),
        name="yolotrt",
        binary="yolotrt",
        version=importlib.metadata.version("yolotrt-core"),
        config_class=Config,
    )


def main() -> None:
    """Run the `yolotrt` command."""
    try:
        from yolotrt_core.cli import streams

        streams.prepare()
        streams.finish(lambda: program().run())
    except KeyboardInterrupt:  # before a task could begin
        sys.stderr.write("cancelled\n")
        sys.exit(130)
