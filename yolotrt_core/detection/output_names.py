"""Output names of a detection run: one per source, used for images, labels and ids."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Literal

from yolotrt_core.datasets.yolo import label_file
from yolotrt_core.errors import UsageError
from yolotrt_core.media import inputs

_log = logging.getLogger(__name__)

Format = Literal["json", "jsonl", "coco", "yolo"]
LABELS = "labels"  # folder for labels in YOLO's form
# Separator of video name and frame number, in formats that name frames.
_FRAME_MARKS: dict[Format, str] = {"coco": ":", "yolo": "_"}


class Names:
    """Output names of a run, all assigned before it starts.

    A source keeps its own name. A number is appended to a duplicate; in formats that name labels or ids, also if only
    the suffixes differ.
    """

    def __init__(self, sources: Sequence[Path | str], out: Path, form: Format) -> None:
        """Name the sources.

        Args:
            sources: files, or live sources see `media.inputs.is_live` (str).
            out: folder for results. form: format of the results file.
        """
        self.out = out
        self._mark, self._form = _FRAME_MARKS.get(form), form
        self._taken: set[tuple[bool, str, str]] = set()
        self._like_frames: set[str] = set()  # videos with a frame named like an image
        self._names: dict[Path | str, str] = {}
        self._numbers: dict[tuple[bool, str, str], int] = {}  # the last one that a duplicate got
        for source in sorted(sources, key=_is_video):  # the order of a run
            if source not in self._names:
                self._names[source] = self._take(source)
        self._ids = self._image_ids() if form == "coco" else {}

    @property
    def count(self) -> int:
        """Number of sources."""
        return len(self._names)

    def name(self, source: Path | str) -> str:
        """Return the name of a source, without suffix."""
        return self._names[source]

    def frame_name(self, source: Path | str, number: int) -> str:
        """Return the name of one frame of a video."""
        return f"{self._names[source]}{self._mark}{number}"

    def image_id(self, source: Path | str, number: int | None = None) -> int | str:
        """Return the COCO id of an image or a frame: its number if it is named by one, else its name."""
        return self._ids[source] if number is None else self.frame_name(source, number)

    def target(self, source: Path | str) -> Path:
        """Return the path of the annotated copy of a source."""
        return self.out / (self._names[source] + _suffix(source))

    def refuse_inputs(self, *, annotate: bool) -> None:
        """Refuse to overwrite inputs and their labels.

        Args:
            annotate: whether annotated copies are written.

        Raises:
            UsageError: an annotated copy or labels file is an input or its labels.
        """
        files = [source for source in self._names if isinstance(source, Path)]
        hint = "choose another folder with `--out`"
        read = {_identity(source): source for source in files}
        for source in files if annotate else ():
            found = read.get(_identity(self.target(source)))
            if found is not None:
                copy = self.target(source)
                raise UsageError(f"the annotated copy `{copy}` would overwrite the input `{found}`", hint=hint)
        stills = [source for source in files if self._form == "yolo" and not _is_video(source)]
        known = {_identity(label_file(source)): source for source in stills}
        for source in stills:
            labels = self.out / LABELS / f"{self._names[source]}.txt"
            found = known.get(_identity(labels))
            if found is not None and labels.exists():
                raise UsageError(f"cannot overwrite `{labels}`: it holds the labels of `{found}`", hint=hint)

    def _take(self, source: Path | str) -> str:
        is_video = _is_video(source)
        stem = source.stem if isinstance(source, Path) else inputs.live_name(source)
        suffix = "" if self._mark else _suffix(source)
        first = self._numbers.get((is_video, stem, suffix), 1)  # all before are taken
        for number, name in enumerate(number_duplicates(stem, first), first):
            if (is_video, name, suffix) not in self._taken and not (is_video and name in self._like_frames):
                self._numbers[is_video, stem, suffix] = number
                break
        self._taken.add((is_video, name, suffix))
        frame = re.fullmatch(rf"(.+){self._mark}(0|[1-9]\d*)", name) if self._mark and not is_video else None
        if frame:
            self._like_frames.add(frame[1])
        return name

    def _image_ids(self) -> dict[Path | str, int | str]:
        ids: dict[Path | str, int | str] = {}
        numbers: dict[int, Path] = {}
        for source, name in self._names.items():
            if isinstance(source, str) or _is_video(source):
                continue
            ids[source] = name
            if not source.stem.isdecimal():
                continue
            number = int(source.stem)
            first = numbers.setdefault(number, source)
            if first is source:
                ids[source] = number
            else:
                _log.warning("image_id %d is used by `%s`; using the name for `%s`: `%s`", number, first, source, name)
        return ids


def _is_video(source: Path | str) -> bool:
    return isinstance(source, str) or inputs.is_video(source)


def _suffix(source: Path | str) -> str:
    return ".mp4" if isinstance(source, str) else inputs.copy_suffix(source)


def number_duplicates(stem: str, first: int = 1) -> Iterator[str]:
    """Yield a name, then the same with -2, -3, ... appended; from the one with the number `first`."""
    for number in count(first):
        yield stem if number == 1 else f"{stem}-{number}"


def _identity(path: Path) -> tuple[int, int] | Path:
    """Return the identity of a file, independent of its path; the path of a missing file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino
