"""Tables on standard output, by rich; plain and unwrapped where it is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows under headings.

    Piped output is as wide as its content: a script or a reader with `less -S` gets whole cells.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.show_header = any(columns)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not sys.stdout.isatty())
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False) if sys.stdout.isatty() else Console(width=10_000, markup=False)
    console.print(table, soft_wrap=False)
