"""`detect`: find objects on images, videos and live sources."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolotrt_core.api import Detector
from yolotrt_core.cli import build
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task, stage_flags
from yolotrt_core.console.progress import progress
from yolotrt_core.console.signals import Interrupt, endable, interruptible
from yolotrt_core.console.text import counted, nearest
from yolotrt_core.detection import formats
from yolotrt_core.detection.output_names import Names, numbered
from yolotrt_core.detection.run import DetectionRun, Summary
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.files.atomic import refuse_unwritable
from yolotrt_core.files.paths import user_path
from yolotrt_core.inference.frame_checks import refuse_selection
from yolotrt_core.media import inputs
from yolotrt_core.plugin.options import refuse_unknown
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.types import Selection

_log = logging.getLogger(__name__)

SAMPLE = "sample"
_FORMATS = ("json", "coco", "yolo")
_LISTED = 100  # files; of more, their sum
_IN_A_ROW = 10  # classes: a video may show dozens
_SHOWN_CLASSES = 10  # of a model with hundreds, all would hide the error
_OWN = (
    Flag(
        "path",
        "Image, video, folder, a quoted pattern as 'in/*.jpg', `camera:0`, an rtsp:// address, or `sample`, the "
        "bundled image",
        positional=True,
    ),
    Flag("engine", "Engine file made by `build`, instead of --weights"),
    Flag("conf", "Least score, 0 to 1 (default 0.25)"),
    Flag("iou", "Overlap over which the lower-scored box goes, 0 to 1 (default 0.45)"),
    Flag("multi_label", "on|off: a box may count for several classes (default off)"),
    Flag("agnostic", "on|off: boxes of different classes suppress each other (default off)"),
    Flag("classes", "Classes to keep, by id or name, as 0,2 or person,dog (default all)"),
    Flag("max_det", "Most detections for one image (default 300)"),
    Flag(
        "format",
        "json|coco|yolo: form of the results file (default json); coco: category_id is the model's class index",
    ),
    Flag("annotate", "on|off: write copies with the boxes drawn in; without them it is much faster (default on)"),
    Flag(
        "out",
        "Folder for annotated images and results (default ./detections/; for a camera or stream a new folder in it)",
    ),
    Flag("max_frames", "Stop a video or live source after this many frames (default: its end)"),
    Flag("show_timing", "Print the time of each step", switch=True),
    Flag("json", "Print one JSON document, see yolotrt_core/schemas/detect.json", switch=True),
)
RESERVED = tuple("--" + f.name.replace("_", "-") for f in _OWN if not f.positional)


def task(stages: Registry) -> Any:
    """Make the `detect` task."""
    summary = (
        "Find objects on images or videos; writes annotated copies and a results file.\n\n"
        "Runs an engine file, or builds one for a model with the first builder that can run here.\n\n"
        "Example: detect --weights yolov5n.pt --conf 0.4 images/"
    )
    flags = [*_OWN, *build.RUN_SETTINGS, *build.PARITY_FLAGS, *stage_flags(stages, KINDS)]
    return make_task("detect", summary, flags, lambda given: _detect(stages, given))


def _detect(stages: Registry, given: Given) -> None:
    build.refuse_build_flags(given)
    settings = build.build_settings(stages, given)
    table = settings.recipe.get("detect", {})
    own = [f.name.replace("_", "-") for f in _OWN if f.name not in ("path", "engine", "out", "show_timing", "json")]
    refuse_unknown({k.replace("_", "-"): v for k, v in table.items()}, own, "in table `[detect]` of the recipe")
    asked = {k.replace("-", "_"): v for k, v in table.items()} | {k: v for k, v in given.items() if v is not None}
    selection = selection_from(asked)
    classes = class_words(asked["classes"]) if "classes" in asked else []
    form: Any = asked.get("format", "json")
    if form not in _FORMATS:
        raise UsageError(f"`--format` expects json, coco or yolo, found `{form}`", hint=nearest(str(form), _FORMATS))
    most_frames = build.whole_number("--max-frames", asked["max_frames"]) if "max_frames" in asked else None
    source = given["path"]
    paths = _paths(source)
    if given["max_frames"] is not None and paths and not any(inputs.is_video(p) for p in paths):
        raise UsageError(
            f"`--max-frames` ends a video or live source, found only images in `{inputs.redact(source)}`",
            hint="drop `--max-frames`; for some of the images, pass a pattern that means them",
        )
    out = user_path(given["out"] or "detections")
    annotate = build.switch("--annotate", asked.get("annotate", "on"))
    names = Names(paths, out, form)
    names.refuse_inputs(annotate=annotate)
    refuse_unwritable(out)  # before anything is built
    chosen = {f: getattr(settings, f) for f in settings.__slots__ if f != "weights"}
    with Detector.open(
        settings.weights, engine=given["engine"], store=build.path_from_text(given["store"]), stages=stages, **chosen
    ) as detector:
        selection = replace(selection, classes=class_ids(classes, detector.labels))
        refuse_selection(selection, detector.labels)
        if paths:
            run = DetectionRun(detector, selection, form, names, annotate=annotate)
            with interruptible() as interrupt:
                with _writing(out):
                    _files(run, paths, interrupt, most_frames)
                    run.finish()
                _report(run, detector, given, form, out)
                if interrupt.requested and run.summaries:
                    _log.warning("stopped before the end: what was found until then is in `%s`", out)
        else:
            with endable() as interrupt, _recording(source, out, new=given["out"] is None) as out:
                run = DetectionRun(detector, selection, form, Names([source], out, form), annotate=annotate)
                with _writing(out):
                    _live(run, source, interrupt, most_frames)
                    run.finish()
                _report(run, detector, given, form, out)
    run.refuse_unread()


@contextlib.contextmanager
def _recording(source: str, out: Path, *, new: bool) -> Iterator[Path]:
    """Give the folder for what a live source shows; a new one, since what was recorded does not come again.

    Args:
        new: make one in `out`, named by the source and the time.
    """
    if not new:
        yield out
        return
    name = f"{inputs.live_name(source)}-{time.strftime('%Y%m%d-%H%M%S')}"
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        folder = next(place for place in (out / one for one in numbered(name)) if _made(place))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it holds something, mostly
            folder.rmdir()


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:  # of another camera of the same host, in the same second
        return False
    return True


def _paths(source: str) -> list[Path]:
    """Return the files to read; none for a live source."""
    if inputs.is_live(source):
        return []
    if source == SAMPLE and not Path(SAMPLE).exists():
        return [sample_path()]
    if (camera := camera_hint(source)) and not Path(source).exists():
        raise UsageError(
            f"there is no file or folder `{source}`", hint=f"for the camera of this number pass `{camera}`"
        )
    if flag := build.meant_flag(source):
        raise UsageError(
            f"PATH expects images or a video, and `{source}` is {'an engine' if flag == '--engine' else 'a model'} "
            "by its ending",
            hint=f"pass `{flag} {source}` beside a PATH, as in `detect {flag} {source} sample`",
        )
    return inputs.find_inputs(source)


def camera_hint(source: str) -> str | None:
    """Return what a bare number stands for in upstream's detect.py; None for all else."""
    return f"camera:{source}" if re.fullmatch(r"\d{1,3}", source) else None


def _live(run: DetectionRun, source: str, interrupt: Interrupt, most_frames: int | None) -> None:
    with progress(f"detecting on {inputs.redact(source)}, Ctrl-C ends") as bar:
        run.live(source, bar, interrupt, most_frames)


def _files(run: DetectionRun, paths: list[Path], interrupt: Interrupt, most_frames: int | None) -> None:
    still = [p for p in paths if not inputs.is_video(p)]
    if still:
        with progress("detecting", total=len(still)) as bar:
            run.stills(still, bar, interrupt)
    for path in paths:
        if inputs.is_video(path) and not interrupt.requested:
            with progress(path.name) as bar:
                run.video(path, bar, interrupt, most_frames)


def _report(run: DetectionRun, detector: Detector, given: Given, form: str, out: Path) -> None:
    if given["json"] and form == "coco":
        print(json.dumps(run.entries, indent=2))
        return
    if given["json"]:
        print(formats.one_to_a_line(run.document(), "images"), end="")
        return
    if len(run.summaries) > _LISTED:
        _print_sum(run.summaries, detector.labels, out)
    elif run.summaries:
        print_table(("file", "found", "written"), [_row(s, detector.labels) for s in run.summaries])
    if given["show_timing"]:
        print()
        print_table(("step", "ms per frame"), [(k, str(v)) for k, v in run.milliseconds().items()])
        steps = run.device_milliseconds()
        if steps:
            print()
            print_table(("step on the GPU", "ms, one frame alone"), [(k, f"{v:.3f}") for k, v in steps.items()])


def _row(summary: Summary, labels: Sequence[str]) -> tuple[str, str, str]:
    named = [f"{n} {labels[c]}" for c, n in summary.classes.most_common()]
    if len(named) > _IN_A_ROW:
        named[_IN_A_ROW - 1 :] = [f"{len(named) - _IN_A_ROW + 1} more classes"]
    words = ", ".join(named) or "nothing"
    words += f" ({_cut_off(summary.truncated)})" if summary.truncated else ""
    words = words if summary.frames is None else f"{counted(summary.frames, 'frame')}: {words}"
    return str(summary.path), words, str(summary.written)


def _print_sum(summaries: Sequence[Summary], labels: Sequence[str], out: Path) -> None:
    total: Counter[int] = Counter()
    files: Counter[int] = Counter()
    for s in summaries:
        total.update(s.classes)
        files.update(s.classes.keys())
    if total:
        rows = [(labels[c], str(number), str(files[c])) for c, number in total.most_common()]
        print_table(("class", "found", "in files"), rows)
        print()
    cut_off = sum(s.truncated for s in summaries)
    words = f"{counted(sum(total.values()), 'object')} in {counted(len(summaries), 'file')}"
    print(f"{words}{f', {_cut_off(cut_off)}' if cut_off else ''}; written to {out}")


def _cut_off(boxes: int) -> str:
    return f"{boxes} more cut off by --max-det"


def selection_from(asked: Mapping[str, Any]) -> Selection:
    """Read the thresholds.

    Raises:
        UsageError: not a number in its range, not on or off.
    """
    return Selection(
        conf=build.share("--conf", asked.get("conf", 0.25)),
        iou=build.share("--iou", asked.get("iou", 0.45)),
        multi_label=build.switch("--multi-label", asked.get("multi_label", "off")),
        agnostic=build.switch("--agnostic", asked.get("agnostic", "off")),
        max_det=build.whole_number("--max-det", asked.get("max_det", 300)),
    )


def class_words(value: Any) -> list[str]:
    """Split `--classes`, or a recipe's list; what the words mean only the model knows.

    Raises:
        UsageError: there are none.
    """
    words = [str(w).strip() for w in (value if isinstance(value, list) else str(value).split(","))]
    if not all(words) or not words:
        raise UsageError(f"`--classes` expects class ids or names, as 0,2 or person,dog, found `{value}`")
    return words


def class_ids(words: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of classes given by id or by exact name; a name that several have means all of them.

    Raises:
        UsageError: the model has no such class.
    """
    ids: list[int] = []
    for word in words:
        if re.fullmatch(r"\d{1,9}", word):
            ids.append(int(word))
            continue
        named = [number for number, label in enumerate(labels) if label == word]
        if not named:
            raise UsageError(f"`--classes` names `{word}`, which the model does not have", hint=_near(word, labels))
        ids += named
    return tuple(dict.fromkeys(ids))


def _near(word: str, labels: Sequence[str]) -> str:
    lower = [label.lower() for label in labels]
    close = [lower.index(c) for c in difflib.get_close_matches(word.lower(), lower, n=3)]
    if close:
        return "did you mean " + " or ".join(f"`{labels[number]}` ({number})" for number in close) + "?"
    few = ", ".join(f"{number} {label}" for number, label in enumerate(labels[:_SHOWN_CLASSES]))
    return f"it has classes 0 to {len(labels) - 1}: {few}" + (", ..." if len(labels) > _SHOWN_CLASSES else "")


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure to write results into an error with a remedy."""
    try:
        yield
    except OSError as err:
        raise ArtifactError(
            f"cannot write to `{out}`: {(err.strerror or str(err)).lower()}", hint="choose another folder with `--out`"
        ) from err
