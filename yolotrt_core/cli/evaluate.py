"""`evaluate`: mean average precision of an engine on labelled images, alone or against another."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from yolotrt_core.api import Detector
from yolotrt_core.build.settings import BuildSettings, resolve_model
from yolotrt_core.calibration.images import DEFAULT_CALIBRATOR
from yolotrt_core.cli import build
from yolotrt_core.cli.detect import selection_from
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task, stage_flags
from yolotrt_core.console.text import counted, nearest
from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.coco_map import Bootstrap, Interval
from yolotrt_core.evaluation.evaluator import SELECTION, Comparison, Evaluation, Judge, open_framework
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.inference.rect_detector import RectDetector
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.store.store import Store
from yolotrt_core.types import PRECISIONS, Json

_OWN = (
    Flag("data", "Labelled images: a folder in YOLO layout, a data set YAML, or a COCO JSON file"),
    Flag("part", "train|val|test: which part of a data set YAML (default val)"),
    Flag("engine", "Engine file made by `build`, instead of --weights"),
    Flag("rect", "on|off: each image at its own shape, where the engine accepts any (--dynamic on; default off)"),
    Flag("framework", "Judge the model in its own framework, without an engine", switch=True),
    Flag("against", f"Compare with this: an engine file, or {'|'.join(PRECISIONS)} of the same model"),
    Flag("conf", "Least score, 0 to 1 (default 0.001)"),
    Flag("iou", "Overlap over which the lower-scored box goes, 0 to 1 (default 0.6)"),
    Flag("multi_label", "on|off: a box may count for several classes (default on)"),
    Flag("max_det", "Most detections for one image (default 300)"),
    Flag("bootstrap", "Resamples of the images for the 95% intervals, 100 or more, or 0 for none (default 200)"),
    Flag("seed", "Which resamples (default 0)"),
    Flag("json", "Print one JSON document, see yolotrt_core/schemas/evaluate.json", switch=True),
)
RESERVED = tuple("--" + f.name.replace("_", "-") for f in _OWN)
_MOST_RESAMPLES = 100_000  # far more than move the fourth digit of an interval, and hours of work already
_PARTS: tuple[reader.Part, ...] = ("train", "val", "test")


def task(stages: Registry) -> Any:
    """Make the `evaluate` task."""
    summary = (
        "Judge an engine by mAP on labelled images, with intervals; compare two engines.\n\n"
        "Runs an engine file, or builds one for a model with the first builder that can run here.\n\n"
        "Example: evaluate --weights yolov5n.pt --precision int8 --calib-data train/ --data coco.yaml --against fp32"
    )
    flags = [*_OWN, *build.RUN_SETTINGS, *build.PARITY_FLAGS, *stage_flags(stages, KINDS)]
    return make_task("evaluate", summary, flags, lambda given: _evaluate(stages, given))


def _evaluate(stages: Registry, given: Given) -> None:
    if not given["data"]:
        raise UsageError("`evaluate` needs labelled images", hint="pass `--data DIR_OR_YAML`")
    part = given["part"] or "val"
    if part not in _PARTS:
        raise UsageError(f"`--part` expects train, val or test, found `{part}`")
    build.refuse_build_flags(given)
    settings = build.build_settings(stages, given)
    # Judging is what this command is for: a second judge before it would only hide the figures.
    settings = replace(settings, flags={**settings.flags, "gate": {"check": "off"}})
    store = open_store(build.path_from_text(given["store"]))
    bootstrap = Bootstrap(
        build.whole_number("--bootstrap", given["bootstrap"] or 200, least=0, most=_MOST_RESAMPLES),
        build.whole_number("--seed", given["seed"] or 0, least=0),
    )
    if given["against"] and not bootstrap.resamples:
        raise UsageError(
            "`--against` needs resamples to tell a difference from noise, found `--bootstrap 0`",
            hint="leave out `--bootstrap`, or evaluate each engine by itself",
        )
    if given["engine"]:
        if given["framework"]:
            raise UsageError("`--framework` needs `--weights`: an engine holds no model of a framework")
        read_engine_spec(user_path(given["engine"]))
    reader.check(given["data"], part)
    _refuse_rival(stages, settings, given)
    with contextlib.ExitStack() as stack:
        if given["framework"]:
            first = stack.enter_context(open_framework(settings, stages))
        else:
            first = stack.enter_context(_open(settings, given["engine"], store, stages))
        data = reader.read(given["data"], first.labels, part)
        judge = Judge(data, store, stages, _selection(given), bootstrap)
        rect = build.switch("--rect", given["rect"] or "off")
        result = judge.evaluate(RectDetector(first) if rect else first)
        rival = comparison = None
        if given["against"]:
            second = stack.enter_context(_open_rival(settings, given, store, stages))
            if second.labels != first.labels:
                raise UsageError("the two engines have different classes: nothing to compare")
            rival = judge.evaluate(RectDetector(second) if rect else second)
            comparison = judge.compare(rival, result)
    if given["json"]:
        print(json.dumps(document(judge, result, rival, comparison), indent=2))
    else:
        _report(judge, result, rival, comparison)


def _refuse_rival(stages: Registry, settings: BuildSettings, given: Given) -> None:
    """Check what is to be compared before the first engine is built."""
    wanted = given["against"]
    if not wanted:
        return
    if wanted not in PRECISIONS:
        path = existing_path(wanted)
        if path is None:
            known = ", ".join(PRECISIONS)
            raise UsageError(
                f"`--against` expects an engine file or one of {known}, found `{wanted}`",
                hint=close if (close := nearest(wanted.lower(), PRECISIONS)).startswith("did") else "`build` makes one",
            )
        read_engine_spec(path)
        return
    if given["engine"]:
        raise UsageError(f"`--against {wanted}` needs `--weights`: an engine cannot be built from an engine")
    _, source = resolve_model(settings, stages)
    if source.holds not in (None, wanted):
        raise UsageError(
            f"`--against {wanted}` needs a float32 model, found that `{source.path.name}` holds {source.holds} already",
            hint=f"build the float32 model it was made from with `--precision {wanted}`, and name the engine file here",
        )
    if wanted in DEFAULT_CALIBRATOR and settings.calib_data is None and settings.calibrator is None:
        raise UsageError(
            f"`--against {wanted}` needs images to calibrate on, but `--calib-data` was not given",
            hint="pass `--calib-data DIR`",
        )


def _selection(given: Mapping[str, Any]) -> Any:
    defaults = {"conf": SELECTION.conf, "iou": SELECTION.iou, "multi_label": "on", "max_det": SELECTION.max_det}
    return selection_from({k: given[k] if given.get(k) is not None else v for k, v in defaults.items()})


def _open(settings: BuildSettings, engine: str | None, store: Store, stages: Registry) -> Detector:
    chosen = {f: getattr(settings, f) for f in settings.__slots__ if f != "weights"}
    return Detector.open(settings.weights, engine=engine, store=store, stages=stages, **chosen)


def _open_rival(settings: BuildSettings, given: Given, store: Store, stages: Registry) -> Detector:
    wanted = given["against"]
    if wanted not in PRECISIONS:
        return _open(replace(settings, weights=None), wanted, store, stages)
    return _open(replace(settings, precision=wanted), None, store, stages)


def document(judge: Judge, result: Evaluation, rival: Evaluation | None, comparison: Comparison | None) -> Json:
    """Return what `evaluate --json` prints; its form is in yolotrt_core/schemas/evaluate.json."""
    against: Json = None
    if rival is not None and comparison is not None:
        against = {
            **_figures(rival),
            "difference": {
                "map50": to_json(comparison.map50),
                "map50_95": to_json(comparison.map50_95),
                "more_than_noise": comparison.more_than_noise,
            },
        }
    return {
        "schema": 1,
        "data": str(judge.data.path),
        "pictures": result.images,
        "boxes": result.boxes,
        "skipped": list(result.skipped),
        "selection": to_json(judge.selection),
        "bootstrap": to_json(judge.bootstrap),
        **_figures(result),
        "against": against,
    }


def _figures(result: Evaluation) -> dict[str, Json]:
    return {
        "engine": {
            "builder": result.spec.builder,
            "precision": result.spec.precision,
            "tools": to_json(result.spec.tools),
            "sha256": result.spec.engine_sha256,
        },
        "map50": to_json(result.map50),
        "map50_95": to_json(result.map50_95),
        "classes": to_json(result.accuracy.classes),
        "predictions": result.predictions,
    }


def _report(judge: Judge, result: Evaluation, rival: Evaluation | None, comparison: Comparison | None) -> None:
    rows = [(c.label, str(c.boxes), f"{c.ap50:.4f}", f"{c.ap50_95:.4f}") for c in result.accuracy.classes]
    print_table(("class", "boxes", "AP50", "AP50-95"), rows)
    print()
    shown = [_row(f"{result.spec.builder} {result.spec.precision}", result.map50, result.map50_95)]
    if rival is not None and comparison is not None:
        shown.append(_row(f"{rival.spec.builder} {rival.spec.precision}", rival.map50, rival.map50_95))
        shown.append(_row("difference", comparison.map50, comparison.map50_95, sign="+"))
    around = () if result.map50.low is None else ("95%",)
    print_table(("engine", "mAP50", *around, "mAP50-95", *around), shown)
    skipped = f", {len(result.skipped)} unreadable left out" if result.skipped else ""
    print(f"\n{counted(result.images, 'picture')}, {counted(result.boxes, 'box')}{skipped}")
    too_few = judge.bootstrap.shortfall(result.images)
    if comparison is None:
        if too_few and judge.bootstrap.resamples:  # without any they were not wanted
            print(f"no interval can be told from {too_few}")
    elif too_few:
        print(f"whether the difference in mAP50-95 is more than noise cannot be told from {too_few}")
    else:
        verdict = "more than noise" if comparison.more_than_noise else "not distinguishable from noise"
        print(f"the difference in mAP50-95 is {verdict} on these images")


def _row(name: str, *figures: Interval, sign: str = "") -> tuple[str, ...]:
    cells = [name]
    for f in figures:
        cells.append(f"{f.value:{sign}.4f}")
        if f.low is not None:
            cells.append(f"{f.low:{sign}.4f} to {f.high:{sign}.4f}")
    return tuple(cells)
