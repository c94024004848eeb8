"""Progress on standard error, by rich; silent where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """One line of progress."""

    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        """Set how much is done, out of how much, and the words in front."""


class _Silent:
    def update(self, *, completed: float | None = None, total: float | None = None, text: str | None = None) -> None:
        return


@contextmanager
def progress(text: str, total: float | None = None) -> Iterator[Bar]:
    """Show a progress bar for the block; without `total` it only says that work goes on.

    Thread-safe: `update` may be called from a library's own threads.
    """
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    if total is not None:
        columns = (*columns, TimeRemainingColumn())  # type: ignore[assignment]
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=total)

        class _Shown:
            def update(
                self, *, completed: float | None = None, total: float | None = None, text: str | None = None
            ) -> None:
                changes = {"completed": completed, "total": total, "description": text}
                shown.update(task, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

        yield _Shown()
