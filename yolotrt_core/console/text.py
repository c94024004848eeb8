"""Formatting of messages: counts, lists, suggestions, untrusted text, and line wrapping."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Sequence
from typing import TextIO

_INDENT = "  "


def counted(number: object, noun: str) -> str:
    """Return `1 image`, `2 images`, `2 boxes`, `2 classes`."""
    plural = "" if number == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number} {noun}{plural}"


def not_installed(packages: Sequence[str]) -> str:
    """Return `a` is not installed, `a` and `b` are not installed."""
    named = [f"`{p}`" for p in packages]
    listed = ", ".join(named[:-1]) + (" and " if named[:-1] else "") + named[-1]
    return f"{listed} {'is' if len(named) == 1 else 'are'} not installed"


def printable(text: str) -> str:
    """Replace control characters in text from untrusted files."""
    return "".join(c if c.isprintable() else "?" for c in text)


def first_line(err: BaseException) -> str:
    """Return an exception's message as one line of at most 300 characters."""
    return " ".join(str(err).split())[:300] or type(err).__name__


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a hint with the closest known names, or with all of them."""
    if word.lower() in known and word not in known:
        return f"did you mean `{word.lower()}`?"
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"`{c}`" for c in close) + "?"
    return "known: " + ", ".join(f"`{k}`" for k in sorted(known)) if known else "there are none"


def wrapped(text: str, stream: TextIO) -> str:
    """Wrap text to the width of a terminal.

    Lines are broken at spaces only; without a terminal they stay unchanged.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
            expand_tabs=False,
            drop_whitespace=True,
        )
        if len(line) > width
        else line
        for line in text.split("\n")
    )
