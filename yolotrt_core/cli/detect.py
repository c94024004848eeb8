"""`detect`: detect objects in images, videos and live sources."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.cli.argument_checks import camera_hint
from yolotrt_core.cli.recipe import (
    RecipeSettings,
    build_groups,
    build_settings,
    meant_flag,
    refuse_build_flags,
)
from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.console.progress import progress
from yolotrt_core.console.signals import Interrupt, endable, interruptible
from yolotrt_core.console.text import counted
from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.files.paths import refuse_unwritable
from yolotrt_core.media import inputs
from yolotrt_core.media.inputs import is_video, redact
from yolotrt_core.plugin.options import MANY, Format, option, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.location import open_store
from yolotrt_core.types import Selection

if TYPE_CHECKING:
    from yolotrt_core.api import Detector
    from yolotrt_core.detection.formats import Style
    from yolotrt_core.detection.run import DetectionRun
    from yolotrt_core.detection.summary import Summaries, Summary

_log = logging.getLogger(__name__)

SAMPLE = "sample"
_IN_A_ROW = 10  # classes: a video may show dozens
_SHOWN_CLASSES = 10  # a list of hundreds would hide the error


def _class_names(value: Any) -> tuple[str, ...]:
    names = [str(n).strip() for n in (value if isinstance(value, list) else str(value).split(","))]
    if not names or not all(names):
        raise ValueError
    return tuple(names)


@dataclass(frozen=True, eq=False, repr=False)
class DetectSettings(RecipeSettings):
    """Settings of a detection; the keys of recipe table [detect] are fields of it."""

    path: str = option(
        "", positional=True, in_recipe=False, common=True,
        help="Image, video, folder, list (.txt), quoted pattern ('in/*.jpg'), `camera:0`, RTSP URL, or `sample`",
    )  # fmt: skip
    engine: str | None = option(
        None, in_recipe=False, common=True, metavar="FILE", default_text="from --weights",
        help="Engine file of `build`",
    )  # fmt: skip
    conf: float = option(0.25, common=True, minimum=0, maximum=1, help="Confidence threshold")
    iou: float = option(0.45, common=True, minimum=0, maximum=1, help="IoU threshold for NMS")
    multi_label: bool = option(False, help="Multi-label NMS")
    agnostic: bool = option(False, help="Class-agnostic NMS")
    classes: tuple[str, ...] = option(
        (), common=True, default_text="all", help="Classes to keep, by id or name",
        format=Format("LIST", "class ids or names, for example 0,2 or person,dog", _class_names),
    )  # fmt: skip
    max_det: int = option(300, minimum=1, maximum=MANY, help="Maximum detections per image")
    format: Literal["json", "jsonl", "coco", "yolo"] = option(
        "json", common=True, help="Results; coco: category_id is the class index of the model"
    )
    category_ids: Literal["index", "coco"] = option(
        "index", help="Ids of --format coco; coco: the official 1 to 90, for models of COCO's classes"
    )
    label_scores: bool = option(True, help="Confidence as sixth column of --format yolo; off: labels for training")
    annotate: bool = option(True, common=True, help="Write annotated copies; much faster when off")
    out: Path = option(
        Path("detections"), in_recipe=False, common=True, metavar="DIR",
        default_text="./detections/; live: a new folder in it",
        help="Folder for annotated images and results",
    )  # fmt: skip
    rect: bool = option(
        False, help="Run each image at its own shape, as upstream's detect.py does; needs a dynamic-shape engine"
    )
    max_frames: int | None = option(
        None, minimum=1, maximum=MANY, default_text="its end", help="Maximum frames of a video or live source"
    )
    reconnect: int = option(
        inputs.RECONNECT_SECONDS, minimum=0, maximum=MANY, unit="seconds",
        help="Time without a frame after which a live source counts as lost; 0: never reconnect",
    )  # fmt: skip
    show_timing: bool = option(False, switch=True, in_recipe=False, help="Print the time of each step")
    json: bool = json_option("detect")

    @property
    def selection(self) -> Selection:
        """Return the thresholds, without `classes`, whose names need the model."""
        return Selection(
            conf=self.conf,
            iou=self.iou,
            multi_label=self.multi_label,
            agnostic=self.agnostic,
            max_det=self.max_det,
        )


def task(registry: Registry) -> Any:
    """Make the `detect` task."""
    summary = (
        "Detect objects in images and videos; write annotated copies and results.\n\n"
        "Runs an engine file, or builds one with the first builder that can run here.\n\n"
        "Example: detect --weights yolov5n.pt --conf 0.4 images/"
    )
    groups = build_groups(registry, DetectSettings, run=True)
    return make_task("detect", summary, groups, lambda given: _detect(registry, given))


def _detect(registry: Registry, given: Given) -> None:
    from yolotrt_core.api import Detector
    from yolotrt_core.detection.output_names import Names
    from yolotrt_core.detection.run import DetectionRun
    from yolotrt_core.inference.frame_checks import refuse_selection
    from yolotrt_core.inference.rect_detector import RectDetector

    refuse_build_flags(given)
    build = build_settings(registry, given)
    settings = resolve_settings(DetectSettings, given, "detect", build.recipe.get("detect"))
    source, out, form = settings.path, settings.out, settings.format
    paths = _paths(source)
    if given["max_frames"] is not None and paths and not any(inputs.is_video(p) for p in paths):
        raise UsageError(
            f"`--max-frames` is for a video or live source, found only images in `{redact(source)}`",
            hint="drop `--max-frames`; for some of the images, pass a pattern that matches them",
        )
    _refuse_unused(settings)
    names = Names(paths, out, form)
    names.refuse_inputs(annotate=settings.annotate)
    refuse_unwritable(out)  # before anything is built
    store = open_store(settings.store)
    with Detector.open(engine=settings.engine, store=store, registry=registry, settings=build) as detector:
        _refuse_box_settings(settings, has_boxes=detector.spec.model.has_boxes)
        selection = replace(settings.selection, classes=class_ids(settings.classes, detector.labels))
        refuse_selection(selection, detector.labels)
        style = _style(settings, detector.labels)
        runner = RectDetector(detector) if settings.rect else detector
        if paths:
            run = DetectionRun(
                runner,
                selection,
                form,
                names,
                annotate=settings.annotate,
                style=style,
                printed=settings.json,
            )
            with run, interruptible() as interrupt:
                with _writing(out):
                    _files(run, paths, interrupt, settings.max_frames)
                    run.finish()
                _report(run, detector, settings, out)
                if interrupt.requested and run.summaries:
                    _log.warning("stopped before the end: partial results written to `%s`", out)
        else:
            with endable() as interrupt, _recording(source, out, new=given["out"] is None) as out:
                run = DetectionRun(
                    runner,
                    selection,
                    form,
                    Names([source], out, form),
                    annotate=settings.annotate,
                    style=style,
                    printed=settings.json,
                )
                with run:
                    with _writing(out):
                        _live(run, source, interrupt, settings)
                        run.finish()
                    _report(run, detector, settings, out)
    run.refuse_unread()


def _refuse_unused(settings: DetectSettings) -> None:
    """Refuse variants of a format that is not written."""
    for flag, form, is_given in (
        ("--category-ids coco", "coco", settings.category_ids == "coco"),
        ("--label-scores off", "yolo", not settings.label_scores),
    ):
        if is_given and settings.format != form:
            raise UsageError(
                f"`{flag}` needs `--format {form}`, found `{settings.format}`", hint=f"add `--format {form}`"
            )


def _refuse_box_settings(settings: DetectSettings, *, has_boxes: bool) -> None:
    """Refuse settings that select or write boxes, for a model without."""
    for name in ("conf", "iou", "multi_label", "agnostic", "classes", "max_det", "label_scores"):
        if not has_boxes and getattr(settings, name) != getattr(DetectSettings, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"`{flag}` is for boxes, but this is a classification model", hint=f"omit `{flag}`")


def _style(settings: DetectSettings, labels: Sequence[str]) -> Style:
    from yolotrt_core.datasets.coco_categories import coco_category_ids
    from yolotrt_core.detection.formats import Style

    return Style(coco_category_ids(labels) if settings.category_ids == "coco" else None, settings.label_scores)


@contextlib.contextmanager
def _recording(source: str, out: Path, *, new: bool) -> Iterator[Path]:
    """Yield a new folder for the results of a live source: a recording cannot be repeated.

    Args:
        new: make one in `out`, named by the source and the time.
    """
    from yolotrt_core.detection.output_names import number_duplicates

    if not new:
        yield out
        return
    name = f"{inputs.live_name(source)}-{time.strftime('%Y%m%d-%H%M%S')}"
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        folder = next(place for place in (out / one for one in number_duplicates(name)) if _made(place))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # usually not empty
            folder.rmdir()


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:  # another camera of the same host, in the same second
        return False
    return True


def _paths(source: str) -> list[Path]:
    """Return the files to read; empty for a live source."""
    if inputs.is_live(source):
        return []
    if source == SAMPLE and not Path(SAMPLE).exists():
        return [sample_path()]
    if (camera := camera_hint(source)) and not Path(source).exists():
        raise UsageError(f"there is no file or folder `{source}`", hint=f"for this camera, pass `{camera}`")
    if flag := meant_flag(source):
        raise UsageError(
            f"PATH expects images or a video, but `{source}` has the suffix of "
            f"{'an engine' if flag == '--engine' else 'a model'}",
            hint=f"pass `{flag} {source}` and a PATH, as in `detect {flag} {source} sample`",
        )
    return inputs.find_inputs(source)


def _live(run: DetectionRun, source: str, interrupt: Interrupt, settings: DetectSettings) -> None:
    with progress(f"detecting on {redact(source)}, Ctrl-C stops") as bar:
        run.live(source, bar, interrupt, settings.max_frames, settings.reconnect)


def _files(run: DetectionRun, paths: list[Path], interrupt: Interrupt, max_frames: int | None) -> None:
    still = [p for p in paths if not is_video(p)]
    if still:
        with progress("detecting", total=len(still)) as bar:
            run.stills(still, bar, interrupt)
    for path in paths:
        if inputs.is_video(path) and not interrupt.requested:
            with progress(path.name) as bar:
                run.video(path, bar, interrupt, max_frames)


def _report(run: DetectionRun, detector: Detector, settings: DetectSettings, out: Path) -> None:
    if settings.json:
        run.copy_results(lambda text: show(text, end=""))
        return
    if len(run.summaries) > len(run.summaries.listed):
        _print_totals(run.summaries, detector, out)
    elif run.summaries:
        print_table(("file", "found", "written"), [_row(s, detector.labels) for s in run.summaries.listed])
    if settings.show_timing:
        show()
        print_table(("step", "ms per frame"), [(k, str(v)) for k, v in run.milliseconds().items()])
        steps = run.device_milliseconds()
        if steps:
            show()
            print_table(("step on the GPU", "ms, one frame alone"), [(k, f"{v:.3f}") for k, v in steps.items()])


def _row(summary: Summary, labels: Sequence[str]) -> tuple[str, str, str]:
    named = [f"{n} {labels[c]}" for c, n in summary.classes.most_common()]
    if summary.score is not None:
        named = [f"{labels[c]} {summary.score:.2f}" for c in summary.classes]
    if len(named) > _IN_A_ROW:
        named[_IN_A_ROW - 1 :] = [f"{len(named) - _IN_A_ROW + 1} more classes"]
    words = ", ".join(named) or "nothing"
    words += f" ({_dropped(summary.truncated)})" if summary.truncated else ""
    words = words if summary.frames is None else f"{counted(summary.frames, 'frame')}: {words}"
    return str(summary.path), words, str(summary.written)


def _print_totals(summaries: Summaries, detector: Detector, out: Path) -> None:
    total, labels = summaries.classes, detector.labels
    if total:
        rows = [(labels[c], str(number), str(summaries.in_files[c])) for c, number in total.most_common()]
        print_table(("class", "found", "in files"), rows)
        show()
    dropped = f", {_dropped(summaries.truncated)}" if summaries.truncated else ""
    words = f"{counted(total.total(), 'object' if detector.spec.model.has_boxes else 'image')} in "
    words += counted(summaries.files, "file")
    show(f"{words}{dropped}; written to {out}")


def _dropped(boxes: int) -> str:
    return f"{boxes} more dropped by --max-det"


def class_ids(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of classes given by id or by exact name; a name that several have selects all of them.

    Raises:
        UsageError: the model has no such class.
    """
    ids: list[int] = []
    for name in names:
        if re.fullmatch("[0-9]{1,9}", name):
            ids.append(int(name))
            continue
        named = [number for number, label in enumerate(labels) if label == name]
        if not named:
            raise UsageError(f"`--classes` names `{name}`, which the model does not have", hint=_near(name, labels))
        ids += named
    return tuple(dict.fromkeys(ids))


def _near(name: str, labels: Sequence[str]) -> str:
    lower = [label.lower() for label in labels]
    close = [lower.index(c) for c in difflib.get_close_matches(name.lower(), lower, n=3)]
    if close:
        return "did you mean " + " or ".join(f"`{labels[number]}` ({number})" for number in close) + "?"
    few = ", ".join(f"{number} {label}" for number, label in enumerate(labels[:_SHOWN_CLASSES]))
    return f"it has classes 0 to {len(labels) - 1}: {few}" + (", ..." if len(labels) > _SHOWN_CLASSES else "")


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Report a failure to write results as an error with a hint."""
    try:
        yield
    except OSError as err:
        raise ArtifactError(
            f"cannot write to `{out}`: {os_error_reason(err)}", hint="choose another folder with `--out`"
        ) from err
