"""Looks at the command line before invoke does, where invoke would misread it.

invoke hands whatever follows to an argument that has no dashes: a mistyped flag becomes the PATH,
and the second file of an unquoted glob becomes the name of a task.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import invoke

from yolotrt_core.cli.tasks import error_text
from yolotrt_core.errors import UsageError
from yolotrt_core.options import nearest

_PROGRAMS = ("invoke", "inv", "yolotrt")


def own_arguments() -> list[str]:
    """Return the arguments of this process if it is one of our commands, else none."""
    started = Path(sys.argv[0])
    is_ours = started.stem in _PROGRAMS or (started.stem == "__main__" and started.parent.name == "invoke")
    return sys.argv[1:] if is_ours else []


def refuse_misread(tasks: invoke.Collection, arguments: Sequence[str]) -> None:
    """End the program if a task with a positional argument would be given the wrong thing.

    Raises:
        invoke.Exit: exit code 2, with what was probably meant.
    """
    try:
        _check(tasks, list(arguments))
    except UsageError as err:
        raise invoke.Exit(error_text(err), code=err.exit_code) from err


def _check(tasks: invoke.Collection, tokens: list[str]) -> None:
    names = set(tasks.task_names)
    while tokens and tokens[0] not in names:
        tokens = tokens[1:]
    while tokens:
        name, *tokens = tokens
        arguments = tasks[name].get_arguments()
        flags = {("--" + n): a for a in arguments for n in (a.name, *a.names) if not a.positional}
        flags = {k.replace("_", "-"): a for k, a in flags.items()}
        wanted = [a.name for a in arguments if a.positional]
        if not wanted:
            while tokens and tokens[0] not in names:
                tokens = tokens[1:]
            continue
        tokens = _check_one(name, flags, wanted, tokens, names)


def _check_one(
    name: str, flags: dict[str, invoke.Argument], wanted: list[str], tokens: list[str], names: set[str]
) -> list[str]:
    taken: list[str] = []
    while tokens:
        token, *rest = tokens
        if token in ("-h", "--help", "--"):
            return []
        word = token.partition("=")[0]
        if word in flags:
            takes_value = flags[word].takes_value and "=" not in token
            tokens = rest[1:] if takes_value else rest
        elif token.startswith("-") and len(token) > 1:
            raise UsageError(f"`{name}` has no flag `{word}`", hint=nearest(word, list(flags)))
        elif len(taken) < len(wanted):
            taken.append(token)
            tokens = rest
        elif token in names:
            return tokens
        else:
            raise UsageError(
                f"`{name}` takes one {wanted[-1].upper()}, found `{taken[-1]}` and `{token}`",
                hint="quote a pattern so that the shell does not expand it, as in 'pictures/*.jpg', or name the folder",
            )
    return []
