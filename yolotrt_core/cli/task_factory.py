"""Creates invoke tasks from functions and declared options, with help and error messages."""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import invoke

from yolotrt_core.cli import stdio
from yolotrt_core.console.log import configure
from yolotrt_core.console.signals import Terminated, terminable
from yolotrt_core.console.text import wrapped
from yolotrt_core.errors import StageError, YolotrtError
from yolotrt_core.plugin.options import OptionField, option, setting_fields

Given = Mapping[str, Any]
HELP = frozenset(("-h", "--help"))
HELP_ALL = "--help-all"
_HELP_WIDTH = 79
PROGRAMS = ("invoke", "inv", "yolotrt")


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Options under one title in help."""

    title: str
    fields: tuple[OptionField, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> OptionGroup:
        """Return itself: it is immutable, and `invoke` copies all tasks at every start."""
        return self


class RepeatedArgument(invoke.Argument):
    """A flag that may be given several times.

    invoke's parser collects several values in a list only, and parses into a deep copy.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> invoke.Argument:
        return invoke.Argument(names=self.names, kind=list, default=[], help=self.help, attr_name=self.attr_name)


class Task(invoke.Task[Any]):
    """A task of the command line, which prints its own help."""

    groups: Sequence[OptionGroup] = ()

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[invoke.Argument]:
        """Return the arguments as invoke's parser has them."""
        return [
            RepeatedArgument(names=a.names, help=a.help, attr_name=a.attr_name) if a.kind is list else a
            for a in super().get_arguments(ignore_unknown_help)
        ]


def make_task(name: str, summary: str, groups: Sequence[OptionGroup | type], body: Callable[[Given], None]) -> Task:
    """Create an invoke task.

    Args:
        summary: first line is shown by `--list`, all of it by `--help`.
        groups: its options; the fields of a settings class are titled by the task.
        body: gets every option's value by name: text or None where it was not given, True or False of
            a switch, a list of a repeatable one.
    """
    titled = [OptionGroup(name, setting_fields(g)) if isinstance(g, type) else g for g in groups]
    fields = sorted((f for group in titled for f in group.fields), key=lambda f: not f.positional)

    @functools.wraps(body)
    def run(context: invoke.Context, **given: Any) -> None:
        words = {given[f.argument] for f in fields if f.positional} & {*HELP, HELP_ALL}
        if words:  # invoke took the flag as the argument
            print_help(name, task, full=HELP_ALL in words)
            return
        with_errors(lambda: body(given))

    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in fields:
        default: Any = [] if field.repeatable else False if field.switch else None
        default = inspect.Parameter.empty if field.positional else default
        parameters.append(inspect.Parameter(field.argument, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = summary
    task = Task(
        run,
        name=name.rpartition(".")[2],
        positional=[f.argument for f in fields if f.positional],
        iterable=[f.argument for f in fields if f.repeatable],
        help={f.argument.replace("_", "-"): f.help for f in fields},
        auto_shortflags=False,
    )
    task.groups = titled
    return task


def json_option(schema: str) -> Any:
    """Declare `--json`."""
    help = f"JSON output, see yolotrt_core/schemas/{schema}.json"
    return option(False, switch=True, common=True, in_recipe=False, help=help)


def fields_by_title(groups: Iterable[OptionGroup]) -> dict[str, list[OptionField]]:
    """Return options by the title that help shows them under."""
    titled: dict[str, list[OptionField]] = {}
    for group in groups:
        for field in group.fields:
            titled.setdefault(field.group or group.title, []).append(field)
    return titled


def print_help(name: str, task: Task, *, full: bool = False) -> None:
    """Print the help of a task: its common options and the titles of the others, or all options by title."""
    program = Path(sys.argv[0]).stem
    takes = "".join(f" {f.usage}" for group in task.groups for f in group.fields if f.positional)
    stdio.show(f"Usage: {program if program in PROGRAMS else 'yolotrt'} {name} [options]{takes}\n")
    for line in inspect.cleandoc(task.__doc__ or "").splitlines():
        stdio.show(textwrap.fill(line, _HELP_WIDTH))
    stdio.show()
    titled = fields_by_title(task.groups)
    titled = {title: sorted(fields, key=lambda f: not f.positional) for title, fields in titled.items()}
    shown = titled
    if len(titled) > 1 and not full:
        shown = {"Common options": [f for fields in titled.values() for f in fields if f.common]}
    for title, fields in shown.items():
        stdio.show(f"{title}:")
        invoke.Program().print_columns([(f.usage, f.description) for f in fields])
    if shown is not titled:
        stdio.show(textwrap.fill(f"`{name} {HELP_ALL}` shows all options: {', '.join(titled)}.", _HELP_WIDTH))


def with_errors(work: Callable[[], None]) -> None:
    """Run a command's body; end it with the message and exit code of an error meant for users.

    Raises:
        invoke.Exit: for every YolotrtError, an interrupt, SIGTERM and a closed pipe on stdout.
    """
    configure()
    try:
        with terminable(), stdio.results_apart():
            work()
            stdio.results().flush()
    except YolotrtError as err:
        raise invoke.Exit(wrapped(error_text(err), sys.stderr), code=err.exit_code) from err
    except Terminated:
        raise invoke.Exit("cancelled by SIGTERM", code=143) from None
    except KeyboardInterrupt:
        raise invoke.Exit("cancelled", code=130) from None
    except BrokenPipeError:
        stdio.give_up()
        raise invoke.Exit(code=141) from None


def error_text(err: YolotrtError) -> str:
    """Format an error: message, log file and hint."""
    lines = [f"error: {err.message}".replace("\n", " ")]
    if isinstance(err, StageError):
        if err.stage:
            lines[0] = lines[0].replace("error: ", f"error: {err.stage}: ", 1)
        if err.log and err.log.is_file() and err.log.stat().st_size:
            lines.append(f"log: {err.log}")
    if err.hint:
        lines.append(f"hint: {err.hint}")
    return "\n".join(lines)
