"""Summaries of the files of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LISTED = 100  # files; for more, totals


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of one file.

    Attributes:
        path: the file. written: the annotated copy, else the file with its boxes. classes: class id to number
            of boxes. truncated: boxes dropped by `max_det`. frames: number of frames, or None for an image.
    """

    path: Path
    written: Path
    classes: Counter[int]
    truncated: int
    frames: int | None


class Summaries:
    """Totals over the files of a run, and the summaries of the first `LISTED` of them.

    Attributes:
        listed: summaries in order. files: number of all files. classes: class id to number of boxes. in_files: class
            id to number of files that have it. truncated: boxes dropped by `max_det`.
    """

    def __init__(self) -> None:
        self.listed: list[Summary] = []
        self.files = self.truncated = 0
        self.classes: Counter[int] = Counter()
        self.in_files: Counter[int] = Counter()

    def add(self, summary: Summary) -> None:
        """Add one file."""
        self.files += 1
        self.truncated += summary.truncated
        self.classes.update(summary.classes)
        self.in_files.update(summary.classes.keys())
        if len(self.listed) < LISTED:
            self.listed.append(summary)

    def __len__(self) -> int:
        return self.files
