"""Progress on standard error, by rich; silent where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar(Protocol):
    """One line of progress."""

    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        """Set how much is done, out of how much, and the words in front."""


class _Silent:
    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        return


# rich shows one live display at a time: a bar inside another's block becomes a further line of it.
_shown: Progress | None = None


@contextmanager
def progress(text: str, total: float | None = None) -> Iterator[Bar]:
    """Show a progress bar for the block; without `total` it only says that work goes on.

    Thread-safe: `update` may be called from a library's own threads. Blocks may be nested.
    """
    global _shown
    if not sys.stderr.isatty():
        yield _Silent()
        return
    if _shown is not None:
        with _line(_shown, text, total) as bar:
            yield bar
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # Standard output is for results, and a stage's goes to its log: rich must not take it.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as shown:
        _shown = shown
        try:
            with _line(shown, text, total) as bar:
                yield bar
        finally:
            _shown = None


@contextmanager
def _line(shown: Progress, text: str, total: float | None) -> Iterator[Bar]:
    task = shown.add_task(text, total=total)

    class _Line:
        def update(
            self, *, completed: float | None = None, total: float | None = None, text: str | None = None
        ) -> None:
            changes = {"completed": completed, "total": total, "description": text}
            shown.update(task, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

    try:
        yield _Line()
    finally:
        shown.remove_task(task)
