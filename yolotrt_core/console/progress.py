"""Progress bars of the command line on standard error with rich; silent without a terminal and in library use.

While rich shows a bar it replaces `sys.stderr`, which a host program's threads use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from yolotrt_core.console.output import is_command_line

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar(Protocol):
    """One progress bar."""

    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        """Set the completed amount, the total and the label."""


class _Silent:
    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        return


# rich supports one live display at a time: nested bars become further lines of it.
_shown: Progress | None = None


@contextmanager
def progress(text: str, total: float | None = None) -> Iterator[Bar]:
    """Show a progress bar for the block; without `total` it is indeterminate.

    `update` may be called from any thread. Blocks may be nested.
    """
    global _shown
    if not (is_command_line() and sys.stderr.isatty()):
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
    # rich must not redirect standard output, which is for results and the stage log.
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
