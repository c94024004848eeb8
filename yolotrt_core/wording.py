"""Numbers, lists and foreign texts in messages, as a person would say them."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: object, noun: str) -> str:
    """Return `1 picture`, `2 pictures`, `2 boxes`, `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number} {noun}{ending}"


def not_installed(packages: Sequence[str]) -> str:
    """Return `a` is not installed, `a` and `b` are not installed."""
    named = [f"`{p}`" for p in packages]
    listed = ", ".join(named[:-1]) + (" and " if named[:-1] else "") + named[-1]
    return f"{listed} {'is' if len(named) == 1 else 'are'} not installed"


def printable(text: str) -> str:
    """Replace what would break a line or steer a terminal: texts of foreign files end up in messages."""
    return "".join(c if c.isprintable() else "?" for c in text)


def first_line(err: BaseException) -> str:
    """Return what an exception says, as one line of at most 300 characters."""
    return " ".join(str(err).split())[:300] or type(err).__name__
