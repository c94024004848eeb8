"""Tables on standard output, by rich; plain and unwrapped unless it is a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from yolotrt_core.cli.stdio import results, show
from yolotrt_core.console.text import printable

_UNBROKEN = 10_000


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, whole: Sequence[str] = ()
) -> None:
    """Print rows under headings.

    Piped output is as wide as its content, without trailing spaces: a script or `less -S` gets whole cells.

    Args:
        whole: columns that a narrow terminal must not break; others fold.
    """
    from rich.console import Console
    from rich.table import Table

    is_terminal = results().isatty()
    table = Table(box=None, header_style="bold", title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.show_header = any(columns)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not is_terminal or column in whole)
    for row in rows:
        table.add_row(*map(printable, row))  # file names may contain any character
    if is_terminal:
        Console(file=results(), highlight=False, markup=False).print(table, soft_wrap=False)
        return
    console = Console(width=_UNBROKEN, markup=False, file=io.StringIO())
    with console.capture() as taken:
        console.print(table, soft_wrap=False)
    show("\n".join(line.rstrip() for line in taken.get().splitlines()))
