"""The results file of a run, written as the results come."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from yolotrt_core.detection.output_names import number_duplicates

_log = logging.getLogger(__name__)

PARTIAL = ".partial"  # ends the name of a file that is not complete
_COPIED = 1 << 16  # characters at once


class ResultsFile:
    """A text file that has all that was added to it at any time, and its name when it is complete.

    Until `finish` it is `<name>.partial`. A file of that name, of a run that was killed or still runs, is left alone:
    this one's name gets a number.
    """

    def __init__(self, target: Path | None, folder: Path) -> None:
        """Create the file and its folder.

        Args:
            target: the complete file, in `folder`; None for a file without a name, which `copy_to` reads.

        Raises:
            OSError: it cannot be created; all methods raise it for what cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._file: IO[bytes]
        if target is None:
            self.partial: Path | None = None
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        else:
            self._file, self.partial = _create(target)

    def write(self, text: str) -> None:
        """Append text; it outlives this process, however it ends."""
        self._file.write(text.encode())
        self._file.flush()

    def finish(self) -> None:
        """Give the complete file its name; it replaces the one of an earlier run."""
        if self._target is not None and self.partial is not None:
            self.partial.replace(self._target)
            self.partial = None

    def copy_to(self, write: Callable[[str], object]) -> None:
        """Pass the content on in pieces."""
        self._file.seek(0)
        text = io.TextIOWrapper(self._file, encoding="utf-8", newline="")
        try:
            while piece := text.read(_COPIED):
                write(piece)
        finally:
            text.detach()

    def close(self) -> None:
        """Close the file; one that is not complete remains as `partial`."""
        with contextlib.suppress(OSError):  # what could not be written was reported
            self._file.close()


def _create(target: Path) -> tuple[IO[bytes], Path]:
    """Create the partial file under the first free name."""
    kept: list[Path] = []
    for name in number_duplicates(target.stem):
        path = target.with_name(f"{name}{target.suffix}{PARTIAL}")
        try:
            file = path.open("x+b")
        except FileExistsError:
            kept.append(path)
            continue
        if kept:
            more = f" and {len(kept) - 1} more" if kept[1:] else ""
            _log.warning("kept `%s`%s: results of a run that did not end, or has not ended yet", kept[0], more)
        return file, path
    raise AssertionError("the numbers are endless")
