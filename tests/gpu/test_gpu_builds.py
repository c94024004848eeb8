"""Builds on a GPU: the gate runs the engine itself, `auto` times what passes, and commands end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

import yolotrt_core
from yolotrt_core import Detector, Selection, build
from yolotrt_core.api import Engine
from yolotrt_core.errors import GateError, UsageError
from yolotrt_core.inference.image_loader import decode_ahead
from yolotrt_core.tuning.auto_precision import _FASTER
from yolotrt_core.types import Detections
from yolotrt_tensorrt.runtime.slot import STEPS

pytestmark = pytest.mark.gpu
SCHEMAS = Path(yolotrt_core.__file__).parent / "schemas"
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def make(data: Path, store: Path, tmp_path: Path) -> Make:
    """Build YOLOv5n by TensorRT, calibrated on the calibration images."""

    def call(precision: Any, **settings: Any) -> Engine:
        common = {"builder": "tensorrt", "calib_data": data / "coco" / "images" / "calib", "store": store}
        return build(data / "weights" / "yolov5n.pt", precision=precision, out=tmp_path / "out", **common, **settings)

    return call


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.002), ("fp8", 0.02)])
def test_the_engine_itself_is_judged(
    make: Make, data: Path, precision: str, most: float, record_property: Callable[[str, object], None]
) -> None:
    engine = make(precision, eval_data=data / "coco" / "coco.yaml", max_drop=most)
    assert engine.gate is not None
    assert engine.gate.facts["ran"] == "the engine"
    assert engine.gate.facts["fp32"] == pytest.approx(0.3360, abs=0.0005)
    for name in ("fp32", "lowered", "drop", "drop_low", "drop_high"):
        record_property(name, engine.gate.facts[name])
    again = make(precision, eval_data=data / "coco" / "coco.yaml", max_drop=most)
    assert again.gate is not None
    assert again.gate.from_cache


@pytest.mark.parametrize("labels", [True, False], ids=["by mAP", "by agreement"])
def test_the_gate_is_right_about_fp8_with_one_scale_for_a_layers_weights(
    make: Make, data: Path, labels: bool, record_property: Callable[[str, object], None]
) -> None:
    """TensorRT-RTX 1.6.1 builds it without a word, and on an H100 it answers nonsense."""
    flags = {"fp8": {"weights": "tensor"}}
    ungated = make("fp8", flags={**flags, "gate": {"check": "off"}})
    frames = [cv2.imread(str(f)) for f in sorted((data / "coco" / "images" / "val").glob("*.jpg"))[:16]]
    with Detector.open(engine=ungated.path) as detector:
        found = sum(map(len, detector.detect(frames, Selection())))
    answers = np.load(data / "reference" / "yolov5n_detections_val.npz")
    names = sorted(f.stem for f in (data / "coco" / "images" / "val").glob("*.jpg"))[:16]
    expected = sum(len(answers[f"{name}/c25"]) for name in names)
    record_property("boxes", found)
    record_property("upstream's boxes", expected)
    judged: dict[str, Any] = {"flags": {**flags, "sensitivity": {"search": "off"}}}
    if labels:
        judged |= {"eval_data": data / "coco" / "coco.yaml", "max_drop": 0.05}
    if 0.5 * expected < found < 2 * expected:
        assert make("fp8", **judged).gate is not None
        return
    with pytest.raises(GateError, match="the fp8 engine failed the accuracy gate") as refused:
        make("fp8", **judged)
    assert "evaluated with the engine" in str(refused.value)
    record_property("refusal", str(refused.value))


def test_auto_takes_the_fastest_that_passes(
    make: Make, data: Path, record_property: Callable[[str, object], None]
) -> None:
    engine = make("auto", eval_data=data / "coco" / "coco.yaml", max_drop=0.02)
    assert engine.auto is not None
    record_property("answer", engine.auto.text)
    for option in engine.auto.options:
        record_property(f"{option.precision} {option.kept}", f"{option.ms} ms, {option.note}")
    timed = {o.precision: o.ms for o in engine.auto.options if o.ms is not None}
    assert {"fp32", "fp16", "fp8"} <= timed.keys()
    passed = [o.ms for o in engine.auto.options if o.ms is not None and o.passed]
    assert timed[engine.spec.precision] <= min(passed) / _FASTER**2


def test_layers_are_given_back_until_the_engine_holds_the_drop(
    make: Make, data: Path, record_property: Callable[[str, object], None]
) -> None:
    engine = make("fp8", eval_data=data / "coco" / "coco.yaml", max_drop=0.004, flags={"sensitivity": {"images": "8"}})
    assert engine.gate is not None
    assert engine.gate.passed
    assert engine.gate.facts["ran"] == "the engine"
    if engine.mixed is not None:  # all in FP8 does not hold it
        record_property("trade", engine.mixed.text)
        assert 0 < len(engine.mixed.kept) < engine.mixed.layers
        assert engine.mixed.ms


def command(*arguments: str, store: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `yolotrt` as a process of its own, wherever its script may lie."""
    return subprocess.run(
        [sys.executable, "-c", "from yolotrt_core.cli import main; main()", *arguments],
        cwd=cwd,
        env={**os.environ, "YOLOTRT_STORE": str(store), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_detect_finds_on_images_and_videos_what_the_cpu_finds(data: Path, store: Path, tmp_path: Path) -> None:
    images = tmp_path / "pictures"
    images.mkdir()
    for file in sorted((data / "coco" / "images" / "val").glob("*.jpg"))[:10]:
        (images / file.name).write_bytes(file.read_bytes())
    (images / "broken.jpg").write_bytes(b"no image")
    frame = cv2.resize(cv2.imread(str(next(iter(sorted(images.glob("0*.jpg")))))), (640, 480))
    video = cv2.VideoWriter(str(tmp_path / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (640, 480))
    for _ in range(20):
        video.write(frame)
    video.release()
    counts = {}
    for builder in ("tensorrt", "onnxruntime"):
        common = ("--weights", str(data / "weights" / "yolov5n.pt"), "--builder", builder, "--json")
        ran = command("detect", *common, "--out", f"{builder}-p", "pictures", store=store, cwd=tmp_path)
        assert ran.returncode == 2, ran.stderr  # one of them is broken, and the others are done
        assert "1 of 11 files could not be read" in ran.stderr
        stills = json.loads((tmp_path / f"{builder}-p" / "detections.json").read_text())
        jsonschema.validate(stills, json.loads((SCHEMAS / "detect.json").read_text()))
        ran = command("detect", *common, "--out", f"{builder}-f", "video.mp4", store=store, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["engine"]["builder"] == builder
        entries = [*stills["images"], *json.loads(ran.stdout)["images"]]
        counts[builder] = [len(e["detections"]) for e in entries]
    ran = command("detect", "--weights", common[1], "--show-timing", "video.mp4", store=store, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert all(step in ran.stdout for step in ("detect", "ms, one frame alone", *STEPS))
    assert len(counts["tensorrt"]) == 30
    assert np.abs(np.subtract(counts["tensorrt"], counts["onnxruntime"])).max() <= 1


def test_files_are_decoded_by_the_gpu_where_nobody_draws(data: Path, store: Path, tmp_path: Path) -> None:
    weights, folder = data / "weights" / "yolov5n.pt", data / "coco" / "images" / "val"
    paths = sorted(folder.glob("*.jpg"))
    with Detector.open(weights, builder="tensorrt", batch=8, store=store) as detector:
        if not detector.decodes_files:
            pytest.skip("needs nvJPEG (extra `nvjpeg`) and a GPU with JPEG hardware")
        assert not any(isinstance(one, (np.ndarray, UsageError)) for one in decode_ahead(paths, detector))
        found = list(detector.detect_files(paths))
        for one, like in zip(found, detector.detect([cv2.imread(str(p)) for p in paths]), strict=True):
            assert isinstance(one, Detections)
            np.testing.assert_array_equal(one.boxes, like.boxes)
            np.testing.assert_array_equal(one.scores, like.scores)
            np.testing.assert_array_equal(one.class_ids, like.class_ids)
    images = []
    for annotate in ("on", "off"):
        flags = ("--weights", str(weights), "--builder", "tensorrt", "--batch", "8", "--annotate", annotate)
        ran = command("detect", *flags, "--out", annotate, str(folder), store=store, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        images.append(json.loads((tmp_path / annotate / "detections.json").read_text())["images"])
    assert len(images[0]) == len(paths)
    assert images[0] == images[1]
    assert [p.name for p in (tmp_path / "off").iterdir()] == ["detections.json"]


def test_bench_and_doctor_know_the_gpu(data: Path, store: Path, tmp_path: Path) -> None:
    weights = str(data / "weights" / "yolov5n.pt")
    ran = command("bench", "--weights", weights, "--batches", "1,8", "--json", store=store, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "bench.json").read_text()))
    assert document["machine"]["gpu"]["name"]
    one, eight = document["engines"]
    assert one["cuda_graph"] in ("capture", "library")
    assert set(one["steps_ms"]) == set(STEPS)
    assert eight["stream_images_per_second"] > eight["images_per_second"]
    ran = command("doctor", "--json", store=store, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    jsonschema.validate(told, json.loads((SCHEMAS / "doctor.json").read_text()))
    assert told["gpus"][0]["name"] == document["machine"]["gpu"]["name"]
    assert next(b for b in told["builders"] if b["name"] == "tensorrt")["runs"]
