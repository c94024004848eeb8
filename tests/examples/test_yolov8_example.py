"""The example `examples/yolov8`, installed beside the built-in plugins: build, detect and evaluate by its own exporter.

What the commands must find is worked out by plain loops from onnxruntime's answer for the file itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from command_line import Ran, call
from head_reference import Result, reference
from new_plugin import install
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.types import Selection

ROOT = Path(__file__).resolve().parents[2]
CPU = ("--builder", "onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two exports and an image, the plugin being installed while it exists."""
    made = tmp_path_factory.mktemp("yolov8")
    shutil.copytree(ROOT / "examples" / "yolov8", made / "plugin")
    install(made / "plugin")
    shutil.copy(sample_path(), made / "sample.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made / "plugin")
        patch.syspath_prepend(made / "plugin" / "tests")
        from small_yolov8 import write_model

        write_model(made / "fixed.onnx")
        write_model(made / "free.onnx", free=True, tensors=("input", "found"))
        yield made
    for name in [name for name in sys.modules if name.partition(".")[0] in ("yolotrt_yolov8", "small_yolov8")]:
        del sys.modules[name]


def run(folder: Path, *arguments: str) -> Ran:
    ran = call(*arguments, cwd=folder, store=folder / "store")
    assert ran.code == 0, ran.err
    return ran


def expected(folder: Path, chosen: Selection) -> Result:
    """Decode onnxruntime's answer for the file and the image; an objectness of 1 leaves every score as it is."""
    image = cv2.imread(str(folder / "sample.jpg"))
    images, _ = preprocess([image], (64, 64))
    session = onnxruntime.InferenceSession(folder / "fixed.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images})
    return reference(np.insert(answer[0].T, 4, 1, axis=1), image.shape[:2], (64, 64), chosen)


def test_a_build_chooses_the_example_and_names_the_built_in_exporter(folder: Path) -> None:
    ran = run(folder, "build", "--weights", "fixed.onnx", *CPU, "--precision", "fp16", "--json")
    document = json.loads(ran.out)
    assert document["steps"][0]["plugin"] == "yolov8"
    assert document["gate"]["passed"] is True
    assert document["gate"]["matched"] >= 10
    assert "claimed by the exporters `yolov8` of `yolotrt-yolov8` and `onnx` of `yolotrt-core`" in ran.err
    assert "`yolov8` reads it as an anchor-free head of 3 classes, `--exporter onnx` names the other" in ran.err


def test_the_exporter_option_still_decides(folder: Path) -> None:
    build = ("build", "--weights", "fixed.onnx", *CPU, "--precision", "fp32")
    ran = call(*build, "--exporter", "onnx", cwd=folder, store=folder / "store")
    assert ran.code == 2
    assert "--onnx-head" in ran.err
    assert "claimed by" not in ran.err
    other = ("--exporter", "onnx", "--onnx-head", "yolov8", "--json")
    assert json.loads(run(folder, *build, *other).out)["steps"][0]["plugin"] == "onnx"


@pytest.mark.parametrize(
    "chosen",
    [
        Selection(conf=0.3),
        Selection(conf=0.2, iou=0.3, multi_label=True),
        Selection(conf=0.2, iou=0.3, agnostic=True, max_det=20),
        Selection(conf=0.2, multi_label=True, agnostic=True, classes=(0, 2)),
    ],
    ids=str,
)
def test_detect_finds_what_plain_loops_find(folder: Path, chosen: Selection) -> None:
    options: list[str] = []
    for name, value in asdict(chosen).items():
        if name == "classes":
            options += ["--classes", ",".join(map(str, value))] if value else []
        else:
            text = ("off", "on")[value] if isinstance(value, bool) else str(value)
            options += [f"--{name.replace('_', '-')}", text]
    model = ("--weights", "fixed.onnx", *CPU, "--precision", "fp32")
    ran = run(folder, "detect", "sample.jpg", *model, *options, "--annotate", "off", "--json")
    (image,) = json.loads(ran.out)["images"]
    wanted = expected(folder, chosen)
    assert len(wanted.scores) > 5
    assert len({*wanted.class_ids.tolist()}) > 1
    assert image["truncated"] == wanted.truncated
    # Rounding of two runtimes may swap scores that are alike: compare in an order of their own.
    found = _sorted([(d["class_id"], *d["box"], d["score"]) for d in image["detections"]])
    lines = zip(wanted.class_ids, *wanted.boxes.T, wanted.scores, strict=True)
    np.testing.assert_allclose(found, _sorted([*lines]), atol=2e-3)


def _sorted(found: list[Any]) -> np.ndarray:
    return np.array(sorted(found, key=lambda each: [round(float(value), 1) for value in each]), np.float64)


def test_free_sizes_are_built_and_evaluated(folder: Path) -> None:
    """Labels are the model's own boxes above 0.5, so the best boxes are right: mAP is 1. The size leaves no padding."""
    model = ("--weights", "free.onnx", *CPU, "--precision", "fp32", "--dynamic", "on", "--imgsz", "96,128")
    place = folder / "set"
    run(folder, "detect", "sample.jpg", *model, "--conf", "0.5", "--iou", "0.6", "--multi-label", "on",
        "--format", "yolo", "--label-scores", "off", "--annotate", "off", "--out", str(place))  # fmt: skip
    (place / "images").mkdir()
    shutil.copy(folder / "sample.jpg", place / "images")
    assert len((place / "labels" / "sample.txt").read_text().splitlines()) > 10
    ran = run(folder, "evaluate", *model, "--data", str(place), "--json")
    assert json.loads(ran.out)["map50"]["value"] == pytest.approx(1)
