"""Entry points: the tasks for `invoke`, and the program `yolotrt` with the same tasks."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import invoke

# Of OpenCV, which reads it once: our errors say what its complaints about a file would.
ENVIRONMENT = {"OPENCV_LOG_LEVEL": "SILENT"}


def namespace(arguments: Sequence[str] | None = None) -> invoke.Collection:
    """Create all tasks, with the options of every installed plugin as flags.

    Args:
        arguments: the command line, checked before invoke parses it; None: that of this process, if it is ours.
    """
    gc.disable()  # start-up frees nothing, so that each collection would only cost time
    try:
        return _create_tasks(arguments)
    finally:
        gc.enable()


def _create_tasks(arguments: Sequence[str] | None) -> invoke.Collection:
    import invoke

    # invoke disables bytecode caching for later imports, which would compile our
    # modules again for every command of an editable install.
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    from yolotrt_core.cli import stdio

    stdio.prepare()
    from yolotrt_core.cli import (
        argument_checks,
        artifacts,
        bench,
        build,
        detect,
        doctor,
        evaluate,
        inspect,
        plugin_new,
        plugins,
        recipe,
        sensitivity,
    )
    from yolotrt_core.plugin.options import setting_fields
    from yolotrt_core.plugin.registry import Registry

    own: list[type] = [build.BuildOutput, detect.DetectSettings, evaluate.EvaluateSettings]
    own += [sensitivity.SensitivitySettings, bench.BenchSettings]
    reserved = [field.flag for settings in own for field in setting_fields(settings)]
    with stdio.results_apart():
        registry = Registry.discover(reserved_flags=[*recipe.reserved_flags(), *reserved])
        for variable, value in (ENVIRONMENT | registry.environment()).items():
            os.environ.setdefault(variable, value)
    top = invoke.Collection("yolotrt")
    for command in (build, detect, evaluate, sensitivity, bench):
        top.add_task(command.task(registry))
    top.add_collection(artifacts.collection(registry))
    top.add_task(inspect.task(registry))
    top.add_task(plugins.task(registry))
    top.add_collection(plugin_new.collection(registry))
    top.add_task(doctor.task(registry))
    given = argument_checks.own_arguments() if arguments is None else arguments
    argument_checks.check_arguments(top, given, registry.describe_broken)
    return top


def program(arguments: Sequence[str] | None = None) -> invoke.Program:
    """Create the `yolotrt` program with the tasks; `arguments` as for `namespace`."""
    import importlib.metadata

    import invoke

    from yolotrt_core.cli.task_factory import print_help

    class Config(invoke.Config):
        """invoke's settings without configuration files: a user's `~/.invoke.yaml` is for other tasks."""

        def load_base_conf_files(self) -> None:
            return

    class Program(invoke.Program):
        """invoke's program with our help of a task."""

        def print_task_help(self, name: str) -> None:
            print_help(name, self.collection[name])

    return Program(
        namespace=namespace(arguments),
        name="yolotrt",
        binary="yolotrt",
        version=importlib.metadata.version("yolotrt-core"),
        config_class=Config,
    )


def main() -> None:
    """Run the `yolotrt` command."""
    try:
        from yolotrt_core.cli import stdio

        stdio.prepare()
        stdio.finish(lambda: program(sys.argv[1:]).run())
    except KeyboardInterrupt:  # before a task starts
        sys.stderr.write("cancelled\n")
        sys.exit(130)
