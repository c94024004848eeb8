"""Summaries of the files of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.types import Detections

LISTED = 100  # files; for more, totals


def count_classes(found: Detections) -> Counter[int]:
    """Return class id to number of boxes; of a classification model the best class."""
    return Counter(found.class_ids.tolist() if found.classes is None else found.classes.top(1))


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of one file.

    Attributes:
        path: the file. written: the annotated copy, else the file with its boxes. classes: class id to number
            of boxes; of a classification model the number of images or frames of which it is the best. truncated:
            boxes dropped by `max_det`. frames: number of frames, or None for an image. score: of the best class of an
            image, by a classification model; else None.
    """

    path: Path
    written: Path
    classes: Counter[int]
    truncated: int
    frames: int | None
    score: float | None = None


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
