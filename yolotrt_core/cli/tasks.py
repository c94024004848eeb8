"""Makes invoke tasks from plain functions and lists of flags, with errors as users should see them."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import invoke

from yolotrt_core.cli import streams
from yolotrt_core.console.log import configure
from yolotrt_core.console.signals import Terminated, terminable
from yolotrt_core.console.text import wrapped
from yolotrt_core.errors import StageError, YolotrtError
from yolotrt_core.plugin.options import OptionField
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry

Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Flag:
    """One argument of a task.

    Attributes:
        name: as in Python, `calib_data` for `--calib-data`. help: shown by `--help`.
        switch: takes no value. repeatable: may be given several times. positional: has no dashes.
    """

    name: str
    help: str
    switch: bool = False
    repeatable: bool = False
    positional: bool = False


class RepeatedArgument(invoke.Argument):
    """A flag that may be given several times, shown with its value as others are.

    invoke's help shows no value of a list, and its parser collects several values in nothing else; but what
    it parses into is a deep copy.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> invoke.Argument:
        return invoke.Argument(names=self.names, kind=list, default=[], help=self.help, attr_name=self.attr_name)


class _Task(invoke.Task[Any]):
    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[invoke.Argument]:
        return [
            RepeatedArgument(names=a.names, help=a.help, attr_name=a.attr_name) if a.kind is list else a
            for a in super().get_arguments(ignore_unknown_help)
        ]


def make_task(name: str, summary: str, flags: Sequence[Flag], body: Callable[[Given], None]) -> Any:
    """Make one invoke task.

    Args:
        summary: first line is shown by `--list`, all of it by `--help`.
        body: gets every flag's value by name: text or None where it was not given, True or False of
            a switch, a list of a repeatable one.
    """

    @functools.wraps(body)
    def run(context: invoke.Context, **given: Any) -> None:
        if any(given[f.name] in ("-h", "--help") for f in flags if f.positional):
            show_help(name)
            return
        with_errors(lambda: body(given))

    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for flag in sorted(flags, key=lambda f: not f.positional):
        default: Any = inspect.Parameter.empty if flag.positional else (False if flag.switch else None)
        if flag.repeatable:
            default = []
        parameters.append(inspect.Parameter(flag.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = summary
    return _Task(
        run,
        name=name.rpartition(".")[2],
        positional=[f.name for f in flags if f.positional],
        iterable=[f.name for f in flags if f.repeatable],
        help={f.name.replace("_", "-"): f.help for f in flags},
        auto_shortflags=False,
    )


def stage_flags(stages: Registry, kinds: Sequence[str]) -> list[Flag]:
    """Return a flag for every option of every stage of these kinds."""
    return [
        Flag(flag_name(found, option), option_help(option))
        for kind, named in stages.stages.items()
        if kind in kinds
        for found in named.values()
        for option in found.options
    ]


def given_stage_flags(stages: Registry, given: Given) -> dict[str, dict[str, str | None]]:
    """Sort the values of stage flags by stage, as `GivenOptions.flags` wants them."""
    sorted_flags: dict[str, dict[str, str | None]] = {}
    for named in stages.stages.values():
        for found in named.values():
            for option in found.options:
                value = given.get(flag_name(found, option))
                if value is not None:
                    sorted_flags.setdefault(found.name, {})[option.name] = value
    return sorted_flags


def flag_name(found: Registered, option: OptionField) -> str:
    """Return the flag of a stage's option as a Python name."""
    return f"{found.name}_{option.name}"


def option_help(option: OptionField) -> str:
    """Return the help text of an option with unit, words and default."""
    words = "|".join(option.choices)
    default = "automatic" if option.default is None else option.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    unit = f" {option.unit}" if option.unit and option.default is not None else ""
    in_unit = f", in {option.unit}" if option.unit and option.default is None else ""
    return f"{option.help}{in_unit} ({words + '; ' if words else ''}default {default}{unit})"


def with_errors(work: Callable[[], None]) -> None:
    """Run a command's body; end it with the message and exit code of an error meant for users.

    Raises:
        invoke.Exit: for every YolotrtError, an interrupt, SIGTERM and a reader of stdout that went away.
    """
    configure()
    try:
        with terminable():
            work()
            sys.stdout.flush()
    except YolotrtError as err:
        raise invoke.Exit(wrapped(error_text(err), sys.stderr), code=err.exit_code) from err
    except Terminated:
        raise invoke.Exit("cancelled by SIGTERM", code=143) from None
    except KeyboardInterrupt:
        raise invoke.Exit("cancelled", code=130) from None
    except BrokenPipeError:
        streams.give_up()
        raise invoke.Exit(code=141) from None


def error_text(err: YolotrtError) -> str:
    """Return an error as it is shown: what, what to do, where to read more."""
    lines = [f"error: {err.message}".replace("\n", " ")]
    if isinstance(err, StageError):
        if err.stage:
            lines[0] = lines[0].replace("error: ", f"error: {err.stage}: ", 1)
        if err.log and err.log.is_file() and err.log.stat().st_size:
            lines.append(f"log: {err.log}")
    if err.hint:
        lines.append(f"hint: {err.hint}")
    return "\n".join(lines)


def show_help(name: str) -> None:
    """Print a task's help, as `--help NAME` does; for tasks whose argument swallowed the flag."""
    from yolotrt_core.cli import program

    program().run([os.path.basename(sys.argv[0]), "--help", name], exit=False)  # noqa: PTH119 - a name, not a path
