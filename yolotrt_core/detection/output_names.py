"""What a detection run calls its files: one name for each source, kept by images, labels and ids alike."""

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

Format = Literal["json", "coco", "yolo"]
LABELS = "labels"  # folder for labels in YOLO's form
# What stands between a video's name and the number of a frame, where frames have names of their own.
_FRAME_MARKS: dict[Format, str] = {"coco": ":", "yolo": "_"}


class Names:
    """The names of a run, all known before it begins.

    A source keeps the name it has. If another one of the run has that already, a number follows; where labels or ids
    go by the name, also if only the endings differ.
    """

    def __init__(self, sources: Sequence[Path | str], out: Path, form: Format) -> None:
        """Name the sources.

        Args:
            sources: files, or live sources as `media_inputs.is_live` tells them (str).
            out: folder for what is written. form: of the results file.
        """
        self.out = out
        self._mark, self._form = _FRAME_MARKS.get(form), form
        self._taken: set[tuple[bool, str, str]] = set()
        self._like_frames: set[str] = set()  # videos that would call a frame what an image is called
        self._names: dict[Path | str, str] = {}
        for source in sorted(sources, key=_is_video):  # the order of a run
            if source not in self._names:
                self._names[source] = self._take(source)
        self._ids = self._image_ids() if form == "coco" else {}

    @property
    def count(self) -> int:
        """How many sources there are."""
        return len(self._names)

    def name(self, source: Path | str) -> str:
        """Return the name of a source, without an ending."""
        return self._names[source]

    def frame_name(self, source: Path | str, number: int) -> str:
        """Return the name of one frame of a video."""
        return f"{self._names[source]}{self._mark}{number}"

    def image_id(self, source: Path | str, number: int | None = None) -> int | str:
        """Return the COCO id of an image, or of a frame: the number that COCO names its images by, else the name."""
        return self._ids[source] if number is None else self.frame_name(source, number)

    def target(self, source: Path | str) -> Path:
        """Return where the annotated copy of a source goes."""
        return self.out / (self._names[source] + _ending(source))

    def refuse_inputs(self, *, annotate: bool) -> None:
        """Refuse to write over what is read, and over the labels that belong to it.

        Args:
            annotate: whether there will be annotated copies.

        Raises:
            UsageError: a copy or a labels file would be one of the run's own files, by whatever path.
        """
        files = [source for source in self._names if isinstance(source, Path)]
        hint = "choose another folder with `--out`"
        read = {_identity(source): source for source in files}
        for source in files if annotate else ():
            found = read.get(_identity(self.target(source)))
            if found is not None:
                copy = self.target(source)
                raise UsageError(f"the annotated copy `{copy}` would be written over the input `{found}`", hint=hint)
        stills = [source for source in files if self._form == "yolo" and not _is_video(source)]
        known = {_identity(label_file(source)): source for source in stills}
        for source in stills:
            labels = self.out / LABELS / f"{self._names[source]}.txt"
            found = known.get(_identity(labels))
            if found is not None and labels.exists():
                raise UsageError(f"`{labels}` would be written over: it holds the labels of `{found}`", hint=hint)

    def _take(self, source: Path | str) -> str:
        is_video = _is_video(source)
        stem = source.stem if isinstance(source, Path) else inputs.live_name(source)
        ending = "" if self._mark else _ending(source)
        for name in numbered(stem):
            if (is_video, name, ending) not in self._taken and not (is_video and name in self._like_frames):
                break
        self._taken.add((is_video, name, ending))
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
                _log.warning("`%s` has the image_id %d already: that of `%s` is `%s`", first, number, source, name)
        return ids


def _is_video(source: Path | str) -> bool:
    return isinstance(source, str) or inputs.is_video(source)


def _ending(source: Path | str) -> str:
    return ".mp4" if isinstance(source, str) or inputs.is_video(source) else source.suffix


def numbered(stem: str) -> Iterator[str]:
    """Yield a name, and then the same with 2, 3, ... behind it."""
    yield stem
    for number in count(2):
        yield f"{stem}-{number}"


def _identity(path: Path) -> tuple[int, int] | Path:
    """Return what tells a file from all others, whatever path leads to it; the path of what is gone."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino
