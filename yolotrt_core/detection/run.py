"""Detection runs over images, videos and live sources, with their result files.

Threads read ahead and write behind, so that the engine is the bottleneck.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self, cast

from yolotrt_core.console.progress import Bar
from yolotrt_core.console.signals import Interrupt
from yolotrt_core.console.text import counted
from yolotrt_core.detection import formats
from yolotrt_core.detection.annotate import AnnotatedCopies, annotate
from yolotrt_core.detection.formats import DEFAULT_STYLE, Found, Style
from yolotrt_core.detection.output_names import LABELS, Format, Names
from yolotrt_core.detection.results_file import ResultsFile
from yolotrt_core.detection.summary import Summaries, Summary, count_classes
from yolotrt_core.errors import UsageError
from yolotrt_core.files.atomic import atomic_path, write_atomic
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.image_loader import decode_ahead, read_ahead
from yolotrt_core.inference.rect_detector import RectDetector
from yolotrt_core.media import inputs
from yolotrt_core.media.camera import open_live
from yolotrt_core.media.prefetch import drawn_ahead
from yolotrt_core.media.video import Loss, open_video
from yolotrt_core.media.video_writer import VideoWriter
from yolotrt_core.serialization import to_json
from yolotrt_core.types import Detections, Json, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.media.frames import Frame
    from yolotrt_core.media.video_decoder import VideoFrame

_log = logging.getLogger(__name__)

_RESULTS: dict[Format, str] = {
    "json": "detections.json",
    "jsonl": "detections.jsonl",
    "coco": "predictions.json",
    "yolo": LABELS,
}
_FRAMES_AHEAD = 8  # of a video


class DetectionRun:
    """A run over any number of files; `finish` completes the results file, a `with` block closes it in any case.

    Results are written as they come, see `ResultsFile`: memory does not grow with the number of frames.

    Attributes:
        summaries: of the readable files. unread: the error of each unreadable or incomplete file. missing: what
            is missing of videos, as in the results. last: the last frame, (H, W, 3) BGR, or None.
    """

    def __init__(
        self,
        detector: Detector | RectDetector,
        selection: Selection,
        form: Format,
        names: Names,
        *,
        annotate: bool = True,
        style: Style = DEFAULT_STYLE,
        printed: bool = False,
    ) -> None:
        """Prepare a run.

        Args:
            annotate: write annotated copies; without them, images need not be on the host.
            style: variants of the format.
            printed: whether `copy_results` is called at the end, with YOLO labels, too.

        Raises:
            UsageError: a format for boxes, and a model without.
        """
        if form == "coco" and not detector.spec.model.has_boxes:
            raise UsageError(
                "`--format coco` is for boxes and masks, but this is a classification model",
                hint="use `--format json`, or `yolo` for text files",
            )
        self.summaries = Summaries()
        self._results: ResultsFile | None = None
        self._lines, self._printed = 0, printed
        # YOLO labels have no results file, so yolotrt's JSON is printed from an unnamed one.
        self._written: Format | None = form if form != "yolo" else "json" if printed else None
        self.unread: list[UsageError] = []
        self.missing: list[Json] = []
        self.last: Frame | None = None
        self._annotate, self._style = annotate, style
        self._detector, self._selection, self._form = detector, selection, form
        self._names, self._out = names, names.out

    def stills(self, paths: Sequence[Path], bar: Bar, interrupt: Interrupt) -> None:
        """Detect on images until interrupted; unreadable ones are recorded and skipped."""
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

        with AnnotatedCopies() as copies:
            for number, detections in enumerate(self._detector.stream(frames(), self._selection)):
                path, frame = read.popleft()
                found = self._keep(path, None, frame, detections)
                target = self._target(path)
                if target is not None:
                    copies.add(target, cast("NDArray[np.uint8]", frame), detections, self._detector.labels)
                classes = count_classes(detections)
                written = target or self._boxes(path)
                score = None if detections.classes is None else float(detections.classes.scores.max())
                self.summaries.add(Summary(path, written, classes, detections.truncated, None, score))
                if self._form == "yolo":
                    self._write_labels(self._names.name(path), self._as_yolo(found))
                bar.update(completed=number + 1)

    def video(self, path: Path, bar: Bar, interrupt: Interrupt, max_frames: int | None = None) -> None:
        """Detect on a video file until interrupted; an unreadable or truncated one is recorded."""
        try:
            with ExitStack() as stack:
                video = stack.enter_context(open_video(path))
                of_all = f" of {video.frames}" if video.frames else ""
                wanted = _stop_on(interrupt, islice(video, max_frames))
                ahead = stack.enter_context(closing(drawn_ahead(wanted, _FRAMES_AHEAD)))
                count = self._video(path, video.fps, ahead, bar, of_all)
                if loss := video.loss(ended=not interrupt.requested and count != max_frames):
                    self._lose(path, loss)
        except _StoppedBeforeStart:
            return
        except UsageError as err:
            self._note(err)

    def live(
        self,
        source: str,
        bar: Bar,
        interrupt: Interrupt,
        max_frames: int | None = None,
        reconnect: float = inputs.RECONNECT_SECONDS,
    ) -> None:
        """Detect on a live source until it ends or is interrupted; an unavailable or lost one is recorded.

        Args:
            reconnect: seconds without a frame after which it counts as lost; 0: when its first connection ends.

        Raises:
            KeyboardInterrupt: interrupted before the first frame.
        """

        def show(text: str) -> None:
            bar.update(text=f"{self._path(source).name} {text}, Ctrl-C stops")

        try:
            with open_live(source, interrupt, reconnect=reconnect, status=show) as live:
                self._video(source, live.fps, islice(live, max_frames), bar, ", Ctrl-C stops")
                if live.skipped:
                    words = f"{counted(live.skipped, 'frame')} of the live source `{inputs.redact(source)}`"
                    self._lose(source, Loss(f"{words} cannot be decoded", live.skipped, incomplete=False))
                if live.reconnected:
                    words = f"was lost and connected again {counted(live.reconnected, 'time')}"
                    about = f"frames of {live.silent:.0f} s are missing"
                    message = f"the live source `{inputs.redact(source)}` {words}: {about}"
                    self._lose(source, Loss(message, None, incomplete=False))
                if live.lost:
                    hint = "check the source and the network; `--reconnect` sets how long to wait for it"
                    self._lose(source, Loss(live.lost, None, incomplete=True, hint=hint))
        except UsageError as err:
            self._note(err)

    def _video(self, source: Path | str, fps: float, frames: Iterable[VideoFrame], bar: Bar, suffix: str) -> int:
        target = self._target(source)
        path = self._path(source)
        classes: Counter[int] = Counter()
        truncated = count = 0
        waiting: deque[VideoFrame] = deque()

        def kept() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                waiting.append(frame)
                yield frame.pixels

        with ExitStack() as stack:
            video = None
            if target is not None:
                endless = not isinstance(source, Path)
                video = stack.enter_context(VideoWriter(stack.enter_context(atomic_path(target)), fps, endless=endless))
            for number, detections in enumerate(self._detector.stream(kept(), self._selection)):
                frame = waiting.popleft()
                found = self._keep(source, number, frame.pixels, detections, frame.seconds)
                if video is not None:
                    video.write(annotate(frame.pixels, detections, self._detector.labels), frame.seconds)
                classes.update(count_classes(detections))
                truncated += detections.truncated
                count = number + 1
                if self._form == "yolo":
                    self._write_labels(self._names.frame_name(source, number), self._as_yolo(found))
                bar.update(text=f"{path.name} frame {count}{suffix}")
        self.summaries.add(Summary(path, target or self._boxes(source), classes, truncated, count))
        return count

    def finish(self) -> None:
        """Complete the results file, unless no file was readable."""
        if self._written is None or not (self._results or self.summaries):
            return
        results = self._open_results()
        results.write(formats.closing(self._written, self._tail()))
        results.finish()
        if not self._printed:
            results.close()

    def copy_results(self, write: Callable[[str], object]) -> None:
        """Pass on the content of the results file after `finish` if `printed`, see yolotrt_core/schemas/detect.json."""
        if self._results is not None:
            self._results.copy_to(write)
        elif self._written is not None:
            write(formats.opening(self._written, self._head()) + formats.closing(self._written, self._tail()))

    def close(self) -> None:
        """Close the results file; without `finish` it remains as a partial one, which is named in a warning."""
        if self._results is None:
            return
        self._results.close()
        if self._results.partial is not None:
            _log.warning("stopped before the end: the results so far are in `%s`", self._results.partial)
        self._results = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _open_results(self) -> ResultsFile:
        if self._results is None:
            assert self._written is not None
            target = None if self._form == "yolo" else self._out / _RESULTS[self._form]
            self._results = ResultsFile(target, self._out)
            self._results.write(formats.opening(self._written, self._head()))
        return self._results

    def _head(self) -> dict[str, Json]:
        spec = self._detector.spec
        return {
            "schema": 1,
            "engine": {"builder": spec.builder, "precision": spec.precision, "tools": to_json(spec.tools)},
            "labels": list(self._detector.labels),
            "selection": to_json(self._selection),
            "out": str(self._out),
        }

    def _tail(self) -> dict[str, Json]:
        return {
            "milliseconds_per_frame": self.milliseconds(),
            **({"missing": self.missing} if self.missing else {}),
        }

    def milliseconds(self) -> dict[str, Json]:
        """Return the detector's time per frame by step."""
        frames = max(1, self._detector.frames)
        return {step: round(1000 * seconds / frames, 3) for step, seconds in self._detector.seconds.items()}

    def device_milliseconds(self) -> dict[str, float]:
        """Return the GPU time of each step for the last frame alone; nothing without a GPU."""
        if self.last is None:
            return {}
        # The first rounds load kernels that a recorded CUDA graph has not loaded one by one.
        rounds = [self._detector.device_steps([self.last], self._selection) or {} for _ in range(7)][2:]
        return {step: round(median(r[step] for r in rounds), 4) for step in rounds[0]}

    def refuse_unread(self) -> None:
        """Raise if files could not be read completely, after all others are done.

        Raises:
            UsageError: one or more could not.
        """
        if not self.unread:
            return
        first = self.unread[0]
        if self._names.count <= 1:
            raise first
        raise UsageError(
            f"{len(self.unread)} of {self._names.count} files could not be read completely; the first: {first}",
            hint=first.hint,
        )

    def _lose(self, source: Path | str, loss: Loss) -> None:
        """Record what is missing of a video or live source: a few frames with a warning, more as an error."""
        if loss.frames != 0:
            path = str(self._path(source))
            self.missing.append({"path": path, "frames": loss.frames, "reason": loss.message})
        if loss.incomplete:
            self._note(UsageError(loss.message, hint=loss.hint))
        else:
            _log.warning("%s", loss.message)

    def _note(self, err: UsageError) -> None:
        if self._names.count > 1:  # for a single file the final error suffices
            _log.warning("%s", err)
        # Without its traceback, whose frames hold the content of the file.
        self.unread.append(UsageError(err.message, hint=err.hint))

    def _keep(
        self,
        source: Path | str,
        number: int | None,
        frame: Frame,
        detections: Detections,
        seconds: float | None = None,
    ) -> Found:
        self.last = frame
        found = Found(self._path(source), number, frame.shape[0], frame.shape[1], detections, seconds)
        if self._written is None:
            return found
        entries: list[Json] = (
            formats.as_coco(found, self._names.image_id(source, number), self._style)
            if self._written == "coco"
            else [formats.as_json(found, self._detector.labels)]
        )
        results = self._open_results()
        lines = [formats.entry_line(self._written, e, first=self._lines + n == 0) for n, e in enumerate(entries)]
        self._lines += len(lines)
        results.write("".join(lines))
        return found

    def _as_yolo(self, found: Found) -> str:
        return formats.as_yolo(found, self._style, self._detector.labels)

    def _path(self, source: Path | str) -> Path:
        """Return the path of a source in results: of a URL only the host, as the rest may contain a password."""
        return source if isinstance(source, Path) else Path(self._names.name(source))

    def _target(self, source: Path | str) -> Path | None:
        """Return the path of the annotated copy of a source, or None."""
        if not self._annotate:
            return None
        self._out.mkdir(parents=True, exist_ok=True)
        return self._names.target(source)

    def _boxes(self, source: Path | str) -> Path:
        """Return the file that holds the boxes of a source, or the labels folder of a video."""
        of_one = self._form == "yolo" and isinstance(source, Path) and not inputs.is_video(source)
        return self._out / _RESULTS[self._form] / (f"{self._names.name(source)}.txt" if of_one else "")

    def _write_labels(self, name: str, text: str) -> None:
        labels = self._out / _RESULTS["yolo"]
        labels.mkdir(parents=True, exist_ok=True)
        write_atomic(labels / f"{name}.txt", text)


class _StoppedBeforeStart(Exception):  # noqa: N818 - not an error
    """Interrupted before the first frame: there is no video to keep."""


def _stop_on(interrupt: Interrupt, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    begun = False
    for frame in frames:
        if interrupt.requested:
            if begun:
                return
            raise _StoppedBeforeStart
        begun = True
        yield frame
