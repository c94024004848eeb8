"""Lines for a terminal: broken between words, never within one; elsewhere left whole for whoever reads them."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO

_INDENT = "  "


def wrapped(text: str, stream: TextIO) -> str:
    """Return a text of one or more lines as it should be written to `stream`."""
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
