"""Looks at the command line before invoke does, where invoke would misread it.

invoke hands whatever follows to an argument that has no dashes: a mistyped flag becomes the PATH,
and the second file of an unquoted glob becomes the name of a task.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import invoke

from yolotrt_core.cli.build import meant_flag
from yolotrt_core.cli.detect import camera_hint
from yolotrt_core.cli.tasks import RepeatedArgument, error_text
from yolotrt_core.console.text import nearest, wrapped
from yolotrt_core.errors import UsageError
from yolotrt_core.media.inputs import redact as shown

# Options of invoke's own before a task: those after which there may be none, and those that take the next word.
_ASKS = frozenset(("-h", "--help", "-l", "--list", "-V", "--version", "--complete", "--print-completion-script"))
_TAKES_VALUE = frozenset(
    (
        *("-c", "--collection", "-r", "--search-root", "-f", "--config"),
        *("-T", "--command-timeout", "-D", "--list-depth", "-F", "--list-format"),
    )
)
_PROGRAMS = ("invoke", "inv", "yolotrt")


class _UnknownFlagError(UsageError):
    """A flag that no task has."""

    def __init__(self, flag: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.flag = flag


def own_arguments() -> list[str]:
    """Return the arguments of this process if it is one of our commands, else none."""
    started = Path(sys.argv[0])
    is_ours = started.stem in _PROGRAMS or (started.stem == "__main__" and started.parent.name == "invoke")
    return sys.argv[1:] if is_ours else []


def refuse_misread(
    tasks: invoke.Collection, arguments: Sequence[str], broken: Callable[[str], str] = lambda name: ""
) -> None:
    """End the program if the command line has a flag that does not exist, or a task would take the wrong thing.

    Args:
        broken: names the broken plugins that a name may belong to, see `Registry.broken_words`.

    Raises:
        invoke.Exit: exit code 1, as for all that cannot be parsed, with what was probably meant.
    """
    try:
        _check(tasks, list(arguments), broken)
    except UsageError as err:
        raise invoke.Exit(wrapped(error_text(err), sys.stderr), code=1) from err


def _check(tasks: invoke.Collection, tokens: list[str], broken: Callable[[str], str]) -> None:
    names = set(tasks.task_names)
    while tokens and tokens[0] not in names:
        word, *tokens = tokens
        if word in _ASKS:
            return
        if word in _TAKES_VALUE:
            tokens = tokens[1:]
        elif not word.startswith("-") and (hint := nearest(word, sorted(names))).startswith("did you mean"):
            raise UsageError(f"there is no task `{word}`", hint=hint)
    while tokens:
        name, *tokens = tokens
        flags, wanted = _arguments(tasks[name])
        try:
            tokens = _check_one(name, flags, wanted, tokens, names)
        except _UnknownFlagError as err:
            hint = "; ".join(filter(None, (err.hint, broken(err.flag.lstrip("-")))))
            raise UsageError(err.message, hint=hint) from err


def _arguments(task: invoke.Task[Any]) -> tuple[dict[str, invoke.Argument], list[str]]:
    """Return a task's arguments by flag, and the names of those that need no dashes."""
    told = dict(task.help)
    arguments = task.get_arguments()
    task.help = told  # invoke takes the help texts out as it makes arguments, and makes them again later
    flags = {"--" + n.replace("_", "-"): a for a in arguments for n in a.names}
    return flags, [str(a.name) for a in arguments if a.positional]


def _check_one(
    name: str, flags: dict[str, invoke.Argument], wanted: list[str], tokens: list[str], names: set[str]
) -> list[str]:
    taken: list[str] = []
    given: dict[str, str] = {}
    while tokens:
        token, *rest = tokens
        if token in ("-h", "--help", "--"):
            return []
        word = token.partition("=")[0]
        if word in flags:
            takes_value = flags[word].takes_value and "=" not in token
            if takes_value and (not rest or rest[0].partition("=")[0] in flags):
                raise UsageError(f"`{word}` needs a value", hint=f"`{name} --help` says which")
            if flags[word].takes_value and not isinstance(flags[word], RepeatedArgument):
                value = rest[0] if takes_value else token.partition("=")[2]
                if word in given:
                    raise UsageError(f"`{word}` was given twice: `{given[word]}` and `{value}`", hint="leave one out")
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
        elif token.startswith("-"):  # an option of invoke's own
            return []
        elif not wanted:
            raise UsageError(
                f"`{name}` takes nothing but flags, found `{shown(token)}`",
                hint=_word_hint(name, token, flags, names),
            )
        else:
            model = next((w for w in (taken[-1], token) if meant_flag(w) in flags), None)
            raise UsageError(
                f"`{name}` takes one {wanted[-1].upper()}, found `{shown(taken[-1])}` and `{shown(token)}`",
                hint=f"pass `{meant_flag(model)} {shown(model)}`"
                if model
                else "quote a pattern so that the shell does not expand it, as in 'images/*.jpg', or name the folder",
            )
    if len(taken) < len(wanted):
        missing = next(word for word in wanted if f"--{word}" not in taken)
        raise UsageError(
            f"`{name}` needs a {missing.upper()}, but none was given",
            hint=f"{missing.upper()}: {flags[f'--{missing}'].help}",
        )
    return tokens


def _refuse_two_sides(height: str, width: str) -> None:
    """Refuse height and width as two words, as upstream's commands take them."""
    if height.isdecimal() and width.isdecimal() and not Path(width).exists():
        raise UsageError(
            f"`--imgsz` takes one value, found `{height}` and `{width}`",
            hint=f"height,width in one word: `--imgsz {height},{width}`",
        )


def _flag_hint(name: str, token: str, flags: Mapping[str, invoke.Argument], rest: Sequence[str]) -> str:
    word, _, value = token.partition("=")
    if word == "--source" and "--path" in flags:  # as upstream's detect.py has it
        value = value or (rest[0] if rest else "PATH")
        return f"the PATH needs no flag: `{name} {camera_hint(value) or shown(value)}`"
    hint = nearest(word, list(flags))
    return hint if hint.startswith("did you mean") else f"`{name} --help` lists them"


def _word_hint(name: str, token: str, flags: Mapping[str, invoke.Argument], names: set[str]) -> str:
    """Say what a word was probably meant as that no task can take: a model, an engine, a data set or another task."""
    is_data = "--data" in flags and token.lower().endswith((".yaml", ".yml", ".json"))
    meant = "--data" if is_data else meant_flag(token) or "--weights"
    hints = [f"pass `{meant} {shown(token)}`"] if meant in flags else []
    if (task := nearest(token, sorted(names))).startswith("did you mean"):
        hints.append(task)
    return ", or ".join(hints) or f"`{name} --help` lists the flags"
