"""`detect`: find objects on pictures and videos."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core import pictures, results
from yolotrt_core.annotate import annotate
from yolotrt_core.cli import build
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task, stage_flags
from yolotrt_core.detector import Detector
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.options import nearest, refuse_unknown
from yolotrt_core.progress import Bar, progress
from yolotrt_core.registry import KINDS, Registry
from yolotrt_core.results import Found
from yolotrt_core.sources import sample_path
from yolotrt_core.types import Json, Selection, to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

SAMPLE = "sample"
_FORMATS = ("json", "coco", "yolo")
_OWN = (
    Flag(
        "path",
        "Picture, video, folder, a quoted pattern as 'in/*.jpg', or `sample`, the bundled picture",
        positional=True,
    ),
    Flag("engine", "Engine file made by `build`, instead of --weights"),
    Flag("conf", "Least score, 0 to 1 (default 0.25)"),
    Flag("iou", "Overlap over which the lower-scored box goes, 0 to 1 (default 0.45)"),
    Flag("multi_label", "on|off: a box may count for several classes (default off)"),
    Flag("agnostic", "on|off: boxes of different classes suppress each other (default off)"),
    Flag("classes", "Class ids to keep, as 0,2 (default all)"),
    Flag("max_det", "Most detections for one picture (default 300)"),
    Flag("format", "json|coco|yolo: form of the results file (default json)"),
    Flag("out", "Folder for annotated pictures and results (default ./detections/)"),
    Flag("show_timing", "Print the time of each step", switch=True),
    Flag("json", "Print one JSON document, see yolotrt_core/schemas/detect.json", switch=True),
)
RESERVED = tuple("--" + f.name.replace("_", "-") for f in _OWN if not f.positional)


def task(stages: Registry) -> Any:
    """Make the `detect` task."""
    summary = (
        "Find objects on pictures or videos; writes annotated copies and a results file.\n\n"
        "Runs an engine file, or builds one for a model with the first builder that can run here.\n\n"
        "Example: detect --weights yolov5n.pt --conf 0.4 pictures/"
    )
    flags = [*_OWN, *build.SETTINGS, *build.PARITY_FLAGS, *stage_flags(stages, KINDS)]
    return make_task("detect", summary, flags, lambda given: _detect(stages, given))


def _detect(stages: Registry, given: Given) -> None:
    settings = build.build_settings(stages, given)
    table = settings.recipe.get("detect", {})
    own = [f.name.replace("_", "-") for f in _OWN if f.name not in ("path", "engine", "out", "json")]
    refuse_unknown({k.replace("_", "-"): v for k, v in table.items()}, own, "in table `[detect]` of the recipe")
    asked = {k.replace("-", "_"): v for k, v in table.items()} | {k: v for k, v in given.items() if v is not None}
    selection = selection_from(asked)
    form = str(asked.get("format", "json"))
    if form not in _FORMATS:
        raise UsageError(f"`--format` expects json, coco or yolo, found `{form}`", hint=nearest(form, _FORMATS))
    is_sample = given["path"] == SAMPLE and not Path(SAMPLE).exists()
    paths = [sample_path()] if is_sample else pictures.find(given["path"])
    out = Path(given["out"]).expanduser() if given["out"] else Path("detections")
    chosen = {f: getattr(settings, f) for f in settings.__slots__ if f != "weights"}
    with Detector.open(
        settings.weights, engine=given["engine"], store=build.path_from_text(given["store"]), stages=stages, **chosen
    ) as detector:
        run = _Run(detector, selection, form, out)
        with _writing(out), progress("detecting", total=len(paths)) as bar:
            for number, path in enumerate(paths):
                run.add(path, bar)
                bar.update(completed=number + 1)
            run.finish()
        run.report(given["json"], given["show_timing"])
    run.refuse_unread(len(paths))


@dataclass(slots=True)
class _Summary:
    path: Path
    written: Path
    classes: Counter[int]
    truncated: int
    frames: int


class _Run:
    """One run of `detect`: writes as it goes, keeps only what the report needs."""

    def __init__(self, detector: Detector, selection: Selection, form: str, out: Path) -> None:
        self._detector, self._selection, self._form, self._out = detector, selection, form, out
        self._entries: list[Json] = []
        self._summaries: list[_Summary] = []
        self._unread: list[UsageError] = []
        self._names: Counter[str] = Counter()

    def add(self, path: Path, bar: Bar) -> None:
        """Detect on one file; one that cannot be read is noted, and the run goes on."""
        try:
            if pictures.is_video(path):
                self._video(path, bar)
            else:
                self._picture(path)
        except UsageError as err:
            _log.warning("%s", err)
            self._unread.append(err)

    def finish(self) -> None:
        """Write the results file."""
        if self._form == "yolo" or not self._summaries:
            return
        coco = self._form == "coco"
        content = self._entries if coco else self._document()
        target = self._out / ("predictions.json" if coco else "detections.json")
        target.write_text(json.dumps(content, indent=None if coco else 1) + "\n", encoding="utf-8")

    def refuse_unread(self, asked: int) -> None:
        """Fail after all else is done if some file could not be read."""
        if self._unread:
            first = self._unread[0]
            if asked == 1:
                raise first
            raise UsageError(f"{len(self._unread)} of {asked} files could not be read; the first: {first}")

    def _picture(self, path: Path) -> None:
        frame = pictures.read(path)
        found = self._found(path, None, frame)
        target = self._target(path)
        _write_picture(target, annotate(frame, found.detections, self._detector.labels))
        classes = Counter(int(c) for c in found.detections.class_ids)
        self._summaries.append(_Summary(path, target, classes, found.detections.truncated, 1))
        if self._form == "yolo":
            self._write_labels(target, results.as_yolo(found))

    def _video(self, path: Path, bar: Bar) -> None:
        import cv2

        target = self._target(path, ".mp4")
        classes: Counter[int] = Counter()
        truncated = frames = 0
        with pictures.open_video(path) as (facts, stream), contextlib.ExitStack() as stack:
            writer: Any = None
            for number, frame in enumerate(stream):
                if writer is None:
                    size = (frame.shape[1], frame.shape[0])
                    self._out.mkdir(parents=True, exist_ok=True)
                    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), facts.fps, size)
                    stack.callback(writer.release)
                    if not writer.isOpened():
                        raise ArtifactError(f"cannot write the video `{target}`", hint="choose another `--out`")
                found = self._found(path, number, frame)
                writer.write(annotate(frame, found.detections, self._detector.labels))
                classes.update(int(c) for c in found.detections.class_ids)
                truncated += found.detections.truncated
                frames = number + 1
                if self._form == "yolo":
                    self._write_labels(target.with_name(f"{target.stem}_{number}"), results.as_yolo(found))
                bar.update(text=f"{path.name} frame {frames}" + (f" of {facts.frames}" if facts.frames else ""))
        self._summaries.append(_Summary(path, target, classes, truncated, frames))

    def _found(self, path: Path, number: int | None, frame: NDArray[np.uint8]) -> Found:
        detections = self._detector.detect([frame], self._selection)[0]
        found = Found(path, number, frame.shape[0], frame.shape[1], detections)
        if self._form == "coco":
            self._entries += results.as_coco(found)
        if self._form != "coco":
            self._entries.append(results.as_json(found, self._detector.labels))
        return found

    def _target(self, path: Path, suffix: str | None = None) -> Path:
        """Name the annotated copy after its source; files of one name from several folders are numbered."""
        self._out.mkdir(parents=True, exist_ok=True)
        suffix = suffix or path.suffix
        self._names[path.stem + suffix] += 1
        count = self._names[path.stem + suffix]
        return self._out / (path.stem + (f"-{count}" if count > 1 else "") + suffix)

    def _write_labels(self, target: Path, text: str) -> None:
        labels = self._out / "labels"
        labels.mkdir(exist_ok=True)
        (labels / f"{target.stem}.txt").write_text(text, encoding="utf-8")

    def _document(self) -> dict[str, Json]:
        spec = self._detector.spec
        return {
            "schema": 1,
            "engine": {"builder": spec.builder, "precision": spec.precision, "tools": to_json(spec.tools)},
            "labels": list(self._detector.labels),
            "selection": to_json(self._selection),
            "out": str(self._out),
            "milliseconds_per_frame": self._milliseconds(),
            "images": self._entries,
        }

    def _milliseconds(self) -> dict[str, Json]:
        frames = max(1, self._detector.frames)
        return {step: round(1000 * seconds / frames, 3) for step, seconds in self._detector.seconds.items()}

    def report(self, as_json: bool, timing: bool) -> None:
        """Print what was found to standard output."""
        if as_json:
            print(json.dumps(self._document() if self._form != "coco" else self._entries, indent=2))
            return
        rows = []
        for s in self._summaries:
            words = ", ".join(f"{n} {self._detector.labels[c]}" for c, n in sorted(s.classes.items())) or "nothing"
            words += f" ({s.truncated} more cut off by --max-det)" if s.truncated else ""
            words = f"{s.frames} frames: {words}" if pictures.is_video(s.path) else words
            rows.append((str(s.path), words, str(s.written)))
        print_table(("file", "found", "written"), rows)
        if timing:
            print()
            print_table(("step", "ms per frame"), [(k, str(v)) for k, v in self._milliseconds().items()])


def selection_from(asked: Mapping[str, Any]) -> Selection:
    """Read the thresholds.

    Raises:
        UsageError: not a number in its range, not on or off, not class ids.
    """
    classes = asked.get("classes", "")
    words = classes if isinstance(classes, list) else [w for w in str(classes).split(",") if w.strip()]
    return Selection(
        conf=_share("--conf", asked.get("conf", 0.25)),
        iou=_share("--iou", asked.get("iou", 0.45)),
        multi_label=build.switch("--multi-label", asked.get("multi_label", "off")),
        agnostic=build.switch("--agnostic", asked.get("agnostic", "off")),
        classes=tuple(build.whole_number("--classes", str(w).strip(), least=0) for w in words),
        max_det=build.whole_number("--max-det", asked.get("max_det", 300)),
    )


def _share(flag: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"`{flag}` expects a number from 0 to 1, found `{value}`")
    return share


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure to write results into an error with a remedy."""
    try:
        yield
    except OSError as err:
        raise ArtifactError(
            f"cannot write to `{out}`: {(err.strerror or str(err)).lower()}", hint="choose another folder with `--out`"
        ) from err


def _write_picture(target: Path, picture: NDArray[np.uint8]) -> None:
    import cv2

    good, encoded = cv2.imencode(target.suffix, picture)
    if not good:
        raise ArtifactError(f"OpenCV cannot write `{target.suffix}` pictures")
    target.write_bytes(encoded.tobytes())
