"""Checks of the command line that invoke's parser lacks.

invoke takes a mistyped flag as the PATH, and the second file of an unquoted glob as a task.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import invoke

from yolotrt_core.cli.recipe import meant_flag
from yolotrt_core.cli.task_factory import HELP, HELP_ALL, PROGRAMS, RepeatedArgument, error_text, print_help
from yolotrt_core.console.text import nearest, wrapped
from yolotrt_core.errors import UsageError
from yolotrt_core.media.inputs import redact as shown

# invoke's own options before a task: those without a task, and those with a value.
_WITHOUT_TASK = frozenset(("-l", "--list", "-V", "--version", "--complete", "--print-completion-script"))
_TAKES_VALUE = frozenset(
    (
        *("-c", "--collection", "-r", "--search-root", "-f", "--config"),
        *("-T", "--command-timeout", "-D", "--list-depth", "-F", "--list-format"),
    )
)


class _UnknownFlagError(UsageError):
    """A flag that the task does not have."""

    def __init__(self, flag: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.flag = flag


def own_arguments() -> list[str]:
    """Return the arguments of this process if it runs one of our commands, else an empty list."""
    started = Path(sys.argv[0])
    is_ours = started.stem in PROGRAMS or (started.stem == "__main__" and started.parent.name == "invoke")
    return sys.argv[1:] if is_ours else []


def check_arguments(
    tasks: invoke.Collection, arguments: Sequence[str], broken: Callable[[str], str] = lambda name: ""
) -> None:
    """Print a task's help on request; refuse unknown flags and misplaced arguments.

    Args:
        broken: names the broken plugins that a name may belong to, see `Registry.describe_broken`.

    Raises:
        invoke.Exit: after help; with exit code 1 and a suggestion for an invalid command line.
    """
    try:
        _check(tasks, list(arguments), broken)
    except UsageError as err:
        raise invoke.Exit(wrapped(error_text(err), sys.stderr), code=1) from err


def _check(tasks: invoke.Collection, tokens: list[str], broken: Callable[[str], str]) -> None:
    names = set(tasks.task_names)
    while tokens and tokens[0] not in names:
        word, *tokens = tokens
        if word.partition("=")[0] in HELP:
            name = word.partition("=")[2] or (tokens[0] if tokens else "")
            if name in names:
                _help(tasks[name], name)
            return
        if word in _WITHOUT_TASK:
            return
        if word in _TAKES_VALUE:
            tokens = tokens[1:]
        elif not word.startswith("-") and (hint := nearest(word, sorted(names))).startswith("did you mean"):
            raise UsageError(f"unknown task `{word}`", hint=hint)
    while tokens:
        name, *tokens = tokens
        try:
            tokens = _check_one(name, tasks[name], tokens, names)
        except _UnknownFlagError as err:
            hint = "; ".join(filter(None, (err.hint, broken(err.flag.lstrip("-")))))
            raise UsageError(err.message, hint=hint) from err


def _arguments(task: invoke.Task[Any]) -> tuple[dict[str, invoke.Argument], list[str]]:
    """Return a task's arguments by flag, and the names of the positional ones."""
    texts = dict(task.help)
    arguments = task.get_arguments()
    task.help = texts  # invoke consumes the help texts as it creates arguments, and creates them again later
    flags = {"--" + n.replace("_", "-"): a for a in arguments for n in a.names}
    return flags, [str(a.name) for a in arguments if a.positional]


def _help(task: Any, name: str, *, full: bool = False) -> NoReturn:
    print_help(name, task, full=full)
    raise invoke.Exit(code=0)


def _check_one(name: str, task: invoke.Task[Any], tokens: list[str], names: set[str]) -> list[str]:
    flags, wanted = _arguments(task)
    taken: list[str] = []
    given: dict[str, str] = {}
    while tokens:
        token, *rest = tokens
        if token in HELP or token == HELP_ALL:
            _help(task, name, full=token == HELP_ALL)
        if token == "--":
            return []
        word = token.partition("=")[0]
        if word in flags:
            takes_value = flags[word].takes_value and "=" not in token
            if takes_value and (not rest or rest[0].partition("=")[0] in flags):
                raise UsageError(f"`{word}` needs a value", hint=f"`{name} --help` describes it")
            if flags[word].takes_value and not isinstance(flags[word], RepeatedArgument):
                value = rest[0] if takes_value else token.partition("=")[2]
                if word in given:
                    raise UsageError(f"`{word}` was given twice: `{given[word]}` and `{value}`", hint="omit one")
                given[word] = value
            following = rest[1:] if takes_value else rest
            if word == "--imgsz" and following:
                _refuse_two_sides(given[word], following[0])
            if flags[word].positional:
                taken.append(word)
            tokens = following
        elif token.startswith("--") or (token.startswith("-") and len(token) > 1 and wanted):
            raise _UnknownFlagError(word, f"`{name}` has no flag `{word}`", hint=_flag_hint(name, token, flags, rest))
        elif len(taken) < len(wanted):
            taken.append(token)
            tokens = rest
        elif token in names:
            break
        elif token.startswith("-"):  # one of invoke's options
            return []
        elif not wanted:
            raise UsageError(
                f"`{name}` accepts no positional arguments, found `{shown(token)}`",
                hint=_word_hint(name, token, flags, names),
            )
        else:
            model = next((w for w in (taken[-1], token) if meant_flag(w) in flags), None)
            raise UsageError(
                f"`{name}` takes one {wanted[-1].upper()}, found `{shown(taken[-1])}` and `{shown(token)}`",
                hint=f"pass `{meant_flag(model)} {shown(model)}`"
                if model
                else "quote a pattern so that the shell does not expand it, as in 'images/*.jpg', or pass the folder",
            )
    if len(taken) < len(wanted):
        missing = next(word for word in wanted if f"--{word}" not in taken)
        raise UsageError(
            f"`{name}` needs a {missing.upper()}, but none was given",
            hint=f"{missing.upper()}: {flags[f'--{missing}'].help}",
        )
    return tokens


def _refuse_two_sides(height: str, width: str) -> None:
    """Refuse height and width as two arguments, the form of upstream's commands."""
    if height.isdecimal() and width.isdecimal() and not Path(width).exists():
        raise UsageError(
            f"`--imgsz` takes one value, found `{height}` and `{width}`",
            hint=f"height,width as one argument: `--imgsz {height},{width}`",
        )


def _flag_hint(name: str, token: str, flags: Mapping[str, invoke.Argument], rest: Sequence[str]) -> str:
    word, _, value = token.partition("=")
    if word == "--source" and "--path" in flags:  # as in upstream's detect.py
        value = value or (rest[0] if rest else "PATH")
        return f"the PATH needs no flag: `{name} {camera_hint(value) or shown(value)}`"
    hint = nearest(word, list(flags))
    return hint if hint.startswith("did you mean") else f"`{name} {HELP_ALL}` lists them"


def camera_hint(source: str) -> str | None:
    """Return the camera for a bare number, as in upstream's detect.py, else None."""
    return f"camera:{source}" if re.fullmatch("[0-9]{1,3}", source) else None


def _word_hint(name: str, token: str, flags: Mapping[str, invoke.Argument], names: set[str]) -> str:
    """Return a suggestion for a misplaced argument: a model, an engine, a data set or another task."""
    is_data = "--data" in flags and token.lower().endswith((".yaml", ".yml", ".json"))
    meant = "--data" if is_data else meant_flag(token) or "--weights"
    hints = [f"pass `{meant} {shown(token)}`"] if meant in flags else []
    if (task := nearest(token, sorted(names))).startswith("did you mean"):
        hints.append(task)
    return ", or ".join(hints) or f"`{name} {HELP_ALL}` lists the flags"
