"""Detect on images, videos and live sources, and write what was found.

Reading runs ahead on threads and writing behind on others, so that the engine is what one waits for.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from yolotrt_core.console.progress import Bar
from yolotrt_core.console.signals import Interrupt
from yolotrt_core.console.text import counted
from yolotrt_core.detection import formats
from yolotrt_core.detection.annotate import annotate
from yolotrt_core.detection.formats import Found
from yolotrt_core.detection.output_names import LABELS, Format, Names
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.files.atomic import atomic_path, write_atomic
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.image_loader import decode_ahead, read_ahead
from yolotrt_core.media import images, inputs
from yolotrt_core.media.camera import open_live
from yolotrt_core.media.prefetch import drawn_ahead
from yolotrt_core.media.video import VideoFacts, count_frames, open_video
from yolotrt_core.media.video_integrity import missing_bytes
from yolotrt_core.serialization import to_json
from yolotrt_core.types import Detections, Json, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.media.frames import Frame

_log = logging.getLogger(__name__)

_RESULTS: dict[Format, str] = {"json": "detections.json", "coco": "predictions.json", "yolo": LABELS}
_FRAMES_AHEAD = 8  # of a video
_MOST_WAITING = 32  # images drawn but not yet written, so that a slow disk does not fill the memory


@dataclass(frozen=True, slots=True)
class Summary:
    """What was found in one file.

    Attributes:
        path: the file. written: the annotated copy; without one, what holds its boxes. classes: class id to how
            often. truncated: boxes that `max_det` cut off. frames: how many, or None for an image.
    """

    path: Path
    written: Path
    classes: Counter[int]
    truncated: int
    frames: int | None


class DetectionRun:
    """One run over any number of files; `finish` writes the results file.

    Attributes:
        summaries: one for each file that could be read, in order. entries: the content of the
            results file. unread: the error of each file that could not be read. last: the last frame,
            (H, W, 3) BGR, or None.
    """

    def __init__(
        self, detector: Detector, selection: Selection, form: Format, names: Names, *, annotate: bool = True
    ) -> None:
        """Prepare a run.

        Args:
            annotate: write copies with the boxes drawn in; without them, images need not be on the host.
        """
        self.summaries: list[Summary] = []
        self.entries: list[Json] = []
        self.unread: list[UsageError] = []
        self.last: Frame | None = None
        self._annotate = annotate
        self._detector, self._selection, self._form = detector, selection, form
        self._names, self._out = names, names.out

    def stills(self, paths: Sequence[Path], bar: Bar, interrupt: Interrupt) -> None:
        """Detect on images until `interrupt` asks; one that cannot be read is noted, and the run goes on."""
        read: deque[tuple[Path, Frame]] = deque()
        ahead = read_ahead if self._annotate else decode_ahead

        def frames() -> Iterator[Frame]:
            for path, frame in zip(paths, ahead(paths, self._detector), strict=True):
                if interrupt.requested:
                    return
                if isinstance(frame, UsageError):
                    self._note(frame)
                else:
                    read.append((path, frame))
                    yield frame

        with _Writer() as writer:
            for number, detections in enumerate(self._detector.stream(frames(), self._selection)):
                path, frame = read.popleft()
                found = self._keep(path, None, frame, detections)
                target = self._target(path)
                if target is not None:
                    writer.submit(_draw, target, frame, detections, self._detector.labels)
                classes = Counter(detections.class_ids.tolist())
                written = target or self._boxes(path)
                self.summaries.append(Summary(path, written, classes, detections.truncated, None))
                if self._form == "yolo":
                    self._write_labels(self._names.name(path), formats.as_yolo(found))
                bar.update(completed=number + 1)

    def video(self, path: Path, bar: Bar, interrupt: Interrupt, most_frames: int | None = None) -> None:
        """Detect on a video file until `interrupt` asks; one that cannot be opened, or was cut short, is noted."""
        try:
            with ExitStack() as stack:
                facts, frames = stack.enter_context(open_video(path))
                of_all = f" of {facts.frames}" if facts.frames else ""
                wanted = _until(interrupt, islice(frames, most_frames))
                ahead = stack.enter_context(closing(drawn_ahead(wanted, _FRAMES_AHEAD)))
                count = self._video(path, facts, ahead, bar, of_all)
            if interrupt.requested or count == most_frames:
                return
            if missing := missing_bytes(path):
                raise UsageError(
                    f"the video `{path}` was cut short: {missing} bytes are missing at its end, "
                    f"{counted(count, 'frame')} could be read and are in the results",
                    hint="copy or record it again",
                )
        except _StoppedAtOnce:
            return
        except UsageError as err:
            self._note(err)

    def live(self, source: str, bar: Bar, interrupt: Interrupt, most_frames: int | None = None) -> None:
        """Detect on a live source to its end, or until `interrupt` asks; one that cannot be opened is noted.

        Raises:
            KeyboardInterrupt: asked to end before the first frame.
        """
        try:
            with open_live(source, interrupt) as (facts, frames):
                self._video(source, facts, islice(frames, most_frames), bar, ", Ctrl-C ends")
        except UsageError as err:
            self._note(err)

    def _video(
        self,
        source: Path | str,
        facts: VideoFacts,
        frames: Iterable[NDArray[np.uint8]],
        bar: Bar,
        words: str,
    ) -> int:
        target = self._target(source)
        path = self._path(source)
        classes: Counter[int] = Counter()
        truncated = count = 0
        waiting: deque[NDArray[np.uint8]] = deque()

        def kept() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                waiting.append(frame)
                yield frame

        with ExitStack() as stack:
            video = None
            if target is not None:
                video = stack.enter_context(_VideoWriter(stack.enter_context(atomic_path(target)), facts.fps))
            for number, detections in enumerate(self._detector.stream(kept(), self._selection)):
                frame = waiting.popleft()
                found = self._keep(source, number, frame, detections)
                if video is not None:
                    video.write(annotate(frame, detections, self._detector.labels))
                classes.update(detections.class_ids.tolist())
                truncated += detections.truncated
                count = number + 1
                if self._form == "yolo":
                    self._write_labels(self._names.frame_name(source, number), formats.as_yolo(found))
                bar.update(text=f"{path.name} frame {count}{words}")
        self.summaries.append(Summary(path, target or self._boxes(source), classes, truncated, count))
        return count

    def finish(self) -> None:
        """Write the results file; without any readable file there is none."""
        if self._form == "yolo" or not self.summaries:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        coco = self._form == "coco"
        content = json.dumps(self.entries) + "\n" if coco else formats.one_to_a_line(self.document(), "images")
        write_atomic(self._out / _RESULTS[self._form], content)

    def document(self) -> dict[str, Json]:
        """Return the results in yolotrt's own form, see yolotrt_core/schemas/detect.json."""
        spec = self._detector.spec
        return {
            "schema": 1,
            "engine": {"builder": spec.builder, "precision": spec.precision, "tools": to_json(spec.tools)},
            "labels": list(self._detector.labels),
            "selection": to_json(self._selection),
            "out": str(self._out),
            "milliseconds_per_frame": self.milliseconds(),
            "images": self.entries,
        }

    def milliseconds(self) -> dict[str, Json]:
        """Return the detector's time for one frame by step."""
        frames = max(1, self._detector.frames)
        return {step: round(1000 * seconds / frames, 3) for step, seconds in self._detector.seconds.items()}

    def device_milliseconds(self) -> dict[str, float]:
        """Return what each step of the last frame alone takes on the GPU; nothing where there is none."""
        if self.last is None:
            return {}
        # The first rounds load kernels that a recorded graph has not needed one by one.
        rounds = [self._detector.device_steps([self.last], self._selection) or {} for _ in range(7)][2:]
        return {step: round(median(r[step] for r in rounds), 4) for step in rounds[0]}

    def refuse_unread(self) -> None:
        """Raise for the files that could not be read to their end, after all else is done.

        Raises:
            UsageError: one or more could not.
        """
        if not self.unread:
            return
        first = self.unread[0]
        if self._names.count <= 1:
            raise first
        raise UsageError(
            f"{len(self.unread)} of {self._names.count} files could not be read to their end; the first: {first}",
            hint=first.hint,
        )

    def _note(self, err: UsageError) -> None:
        if self._names.count > 1:  # of one file alone the error at the end says it all
            _log.warning("%s", err)
        self.unread.append(err)

    def _keep(self, source: Path | str, number: int | None, frame: Frame, detections: Detections) -> Found:
        self.last = frame
        found = Found(self._path(source), number, frame.shape[0], frame.shape[1], detections)
        if self._form == "coco":
            self.entries += formats.as_coco(found, self._names.image_id(source, number))
        else:
            self.entries.append(formats.as_json(found, self._detector.labels))
        return found

    def _path(self, source: Path | str) -> Path:
        """Return what results call a source: of an address only the host, since the rest may hold a password."""
        return source if isinstance(source, Path) else Path(self._names.name(source))

    def _target(self, source: Path | str) -> Path | None:
        """Return where the annotated copy of a source goes, if there is to be one."""
        if not self._annotate:
            return None
        self._out.mkdir(parents=True, exist_ok=True)
        return self._names.target(source)

    def _boxes(self, source: Path | str) -> Path:
        """Return what holds the boxes of a source: a file, or the labels' folder for a video."""
        of_one = self._form == "yolo" and isinstance(source, Path) and not inputs.is_video(source)
        return self._out / _RESULTS[self._form] / (f"{self._names.name(source)}.txt" if of_one else "")

    def _write_labels(self, name: str, text: str) -> None:
        labels = self._out / _RESULTS["yolo"]
        labels.mkdir(parents=True, exist_ok=True)
        write_atomic(labels / f"{name}.txt", text)


class _Writer:
    """Draws and writes images on threads; the first failure is raised by the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_name_prefix="yolotrt-write")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, work: Any, *arguments: Any) -> None:
        while len(self._waiting) >= _MOST_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work, *arguments))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            while self._waiting:
                future = self._waiting.popleft()
                if kind is None:
                    future.result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


class _VideoWriter:
    """Writes annotated frames; opened at the first one, whose size it takes."""

    def __init__(self, target: Path, fps: float) -> None:
        self._target, self._fps = target, fps
        self._writer: Any = None
        self._frames = 0

    def write(self, frame: NDArray[np.uint8]) -> None:
        import cv2

        with images.quiet_opencv():
            if self._writer is None:
                size = (frame.shape[1], frame.shape[0])
                self._writer = cv2.VideoWriter(str(self._target), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
                if not self._writer.isOpened():
                    raise ArtifactError("cannot write the annotated video", hint="choose another folder with `--out`")
            self._writer.write(frame)
        self._frames += 1

    def __enter__(self) -> _VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._writer is None:
            return
        with images.quiet_opencv():
            self._writer.release()
        # OpenCV tells no one that a write failed, so what was written is asked.
        if kind is None and count_frames(self._target) != self._frames:
            raise ArtifactError(
                "cannot write the annotated video: it is incomplete, as when no space is left",
                hint="free some space, or choose another folder with `--out`",
            )


class _StoppedAtOnce(Exception):  # noqa: N818 - nothing went wrong
    """Asked to end before the first frame: there is no video to keep."""


def _until(interrupt: Interrupt, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    begun = False
    for frame in frames:
        if interrupt.requested:
            if begun:
                return
            raise _StoppedAtOnce
        begun = True
        yield frame


def _draw(target: Path, frame: NDArray[np.uint8], found: Detections, labels: Sequence[str]) -> None:
    import cv2

    good, encoded = cv2.imencode(target.suffix, annotate(frame, found, labels))
    if not good:
        raise ArtifactError(f"OpenCV cannot write `{target.suffix}` images")
    write_atomic(target, encoded.tobytes())
