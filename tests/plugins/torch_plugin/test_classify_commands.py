"""`detect`, `evaluate` and `build` of a classification checkpoint as users start them.

Expected values are computed from the logits of PyTorch by OpenCV and NumPy, as upstream's `classify/predict.py` does.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
import torch
import upstream_layout as layout

import yolotrt_core
from command_line import Ran, call
from yolotrt_core import Detector
from yolotrt_torch.yolov5_model import Network

SCHEMAS = Path(yolotrt_core.__file__).parent / "schemas"
SIDE, CLASSES, IMAGES = 64, 7, 24
COMMON = ("--weights", "c.pt", "--imgsz", str(SIDE), "--builder", "onnxruntime")
FP32 = (*COMMON, "--precision", "fp32")


def input_of(frame: np.ndarray) -> torch.Tensor:
    """Crop, resize and convert an image to float (1, 3, SIDE, SIDE)."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = cv2.resize(frame[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)[::-1])).float()[None] / 255


def scores_of(network: Network, frame: np.ndarray) -> np.ndarray:
    """Return the softmax of the logits, float64 (classes,)."""
    with torch.inference_mode():
        logits = network(input_of(frame))[0].double().numpy()
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with `c.pt` and images of several shapes, and the scores of each."""
    folder = tmp_path_factory.mktemp("classify")
    config = {**layout.CLASSIFY, "nc": CLASSES, "head": [[-1, 1, "Classify", [CLASSES, 64, 1, 1, 0, 1]]]}
    network = layout.lively(config)
    random, frames = np.random.default_rng(4), {}
    (folder / "in").mkdir()
    for number in range(IMAGES):
        coarse = random.integers(0, 256, (*random.integers(2, 6, 2), 3), np.uint8)
        frames[f"{number:02}.png"] = cv2.resize(coarse, (int(random.integers(80, 200)), int(random.integers(80, 200))))
    for name, frame in frames.items():
        assert cv2.imwrite(str(folder / "in" / name), frame)
    # Statistics of these images, or a random network computes nearly the same for all of them.
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        head = network.head.linear
        network(torch.cat([input_of(frame) for frame in frames.values()]))
        network.eval()
        logits = network(torch.cat([input_of(frame) for frame in frames.values()])) - head.bias
        spread = 2 / logits.std(0)
        head.weight.mul_(spread[:, None])
        head.bias.copy_(-logits.mean(0) * spread)
    names = [f"kind {number}" for number in range(CLASSES)]
    layout.save(folder / "c.pt", config, network=network, names=names, kind="ClassificationModel")
    return folder, {name: scores_of(network, frame) for name, frame in frames.items()}


def run(folder: Path, *arguments: str) -> Ran:
    ran = call(*arguments, cwd=folder, store=folder / "store")
    assert ran.code == 0, ran.err
    return ran


def refusal(folder: Path, *arguments: str) -> str:
    ran = call(*arguments, cwd=folder, store=folder / "store")
    assert ran.code == 2, ran.out + ran.err
    return ran.err


def validated(ran: Ran, schema: str) -> Any:
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads((SCHEMAS / schema).read_text()))
    return document


def best(scores: np.ndarray, count: int = 5) -> list[int]:
    return np.argsort(-scores, kind="stable")[:count].tolist()


def test_detect_finds_the_classes_that_pytorch_does(case: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = case
    document = validated(run(folder, "detect", "in", *FP32, "--annotate", "off", "--json"), "detect.json")
    assert len(document["images"]) == IMAGES
    for image in document["images"]:
        scores = expected[Path(image["path"]).name]
        assert [each["class_id"] for each in image["classes"]] == best(scores)
        for each in image["classes"]:
            assert each["label"] == f"kind {each['class_id']}"
            assert each["score"] == pytest.approx(scores[each["class_id"]], abs=2e-5)
        assert image["detections"] == []
    table = run(folder, "detect", "in", *FP32, "--out", "out").out
    first = expected["00.png"]
    assert f"kind {best(first)[0]} {first.max():.2f}" in table
    drawn, given = cv2.imread(str(folder / "out" / "00.png")), cv2.imread(str(folder / "in" / "00.png"))
    assert drawn.shape == given.shape and (drawn != given).any()


def test_a_video_counts_the_best_class_of_each_frame(case: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = case
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (96, 64))
    for file in sorted((folder / "in").iterdir())[:6]:
        writer.write(cv2.resize(cv2.imread(str(file)), (96, 64)))
    writer.release()
    ran = run(folder, "detect", "v.avi", *FP32, "--format", "json", "--out", "frames")
    images = json.loads((folder / "frames" / "detections.json").read_text())["images"]
    counts = Counter(image["classes"][0]["label"] for image in images)
    assert sum(counts.values()) == 6
    assert "6 frames: " + ", ".join(f"{count} {label}" for label, count in counts.most_common()) in ran.out


def test_text_files_are_upstreams(case: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = case
    run(folder, "detect", "in", *FP32, "--format", "yolo", "--annotate", "off", "--out", "text")
    for name, scores in expected.items():
        lines = (folder / "text" / "labels" / Path(name).with_suffix(".txt")).read_text().splitlines()
        assert lines == [f"{scores[each]:.2f} kind {each}" for each in best(scores)]


def test_python_api_on_batches_and_dynamic_shapes(case: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = case
    frames = [cv2.imread(str(folder / "in" / name)) for name in expected]
    given: dict[str, Any] = {"store": folder / "store", "builder": "onnxruntime", "precision": "fp32"}
    for settings in ({"batch": 5}, {"dynamic": True}):
        with Detector.open(folder / "c.pt", imgsz=(SIDE, SIDE), **settings, **given) as detector:
            for found, scores in zip(detector.detect(frames), expected.values(), strict=True):
                assert found.classes is not None and len(found) == 0
                np.testing.assert_allclose(found.classes.scores, scores, atol=2e-5)
                assert found.classes.top(3) == best(scores, 3)


@pytest.mark.parametrize(
    "arguments",
    [("--format", "coco"), ("--conf", "0.4"), ("--max-det", "3"), ("--rect", "on"), ("--classes", "1"),
     ("--format", "yolo", "--label-scores", "off")],
)  # fmt: skip
def test_settings_for_boxes_are_refused(case: tuple[Path, dict[str, np.ndarray]], arguments: tuple[str, ...]) -> None:
    folder, _ = case
    assert f"`{arguments[-2]}" in refusal(folder, "detect", "in", *FP32, *arguments)


@pytest.fixture(scope="module")
def labeled(case: tuple[Path, dict[str, np.ndarray]]) -> tuple[Path, dict[str, int]]:
    """A folder per class below `set/val`; every other image in that of its best class, the others in a random one."""
    folder, expected = case
    random, truth = np.random.default_rng(6), {}
    for number, (name, scores) in enumerate(expected.items()):
        truth[name] = best(scores)[0] if number % 2 else int(random.integers(CLASSES))
        place = folder / "set" / "val" / f"kind {truth[name]}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "in" / name, place)
    return folder / "set", truth


@pytest.mark.parametrize("place", ["set", "set/val"])
def test_accuracy_is_counted_image_by_image(
    case: tuple[Path, dict[str, np.ndarray]], labeled: tuple[Path, dict[str, int]], place: str
) -> None:
    (folder, expected), (_, truth) = case, labeled
    arguments = ("evaluate", *FP32, "--data", place, "--against", "fp16")
    document = validated(run(folder, *arguments, "--json"), "evaluate.json")
    first = np.array([best(expected[name])[0] == own for name, own in truth.items()])
    five = np.array([own in best(expected[name]) for name, own in truth.items()])
    assert (document["top1"]["value"], document["top5"]["value"]) == (first.mean(), five.mean())
    assert document["top1"]["low"] < first.mean() < document["top1"]["high"]
    for each in document["classes"]:
        own = np.array([c == each["class_id"] for c in truth.values()])
        assert (each["images"], each["top1"], each["top5"]) == (own.sum(), first[own].mean(), five[own].mean())
    told = run(folder, *arguments).out
    assert f"onnxruntime fp32  {first.mean():.4f}" in told
    assert "the difference in top-1 accuracy is" in told


def test_class_folders_of_other_names(case: tuple[Path, dict[str, np.ndarray]], labeled: tuple[Path, Any]) -> None:
    folder, _ = case
    shutil.copytree(labeled[0] / "val", folder / "other")
    (folder / "other" / "kind 1").rename(folder / "other" / "thing")
    told = refusal(folder, "evaluate", *FP32, "--data", "other")
    assert "1 class with images is missing in the model, `thing`" in told
    mapped = run(folder, "evaluate", *FP32, "--data", "other", "--class-map", "thing=kind 1", "--json")
    straight = run(folder, "evaluate", *FP32, "--data", "set", "--json")
    assert json.loads(mapped.out)["top1"]["value"] == json.loads(straight.out)["top1"]["value"]
    assert "select boxes" in refusal(folder, "evaluate", *FP32, "--data", "set", "--conf", "0.5")
    assert "no folder with images of a class" in refusal(folder, "evaluate", *FP32, "--data", "in")


def test_gate_compares_the_best_classes(case: tuple[Path, dict[str, np.ndarray]], labeled: tuple[Path, Any]) -> None:
    folder, _ = case
    build = ("build", *COMMON, "--precision", "fp16", "--out", "engine", "--json")
    gate = validated(run(folder, *build, "--eval-data", "in"), "build.json")["gate"]
    assert (gate["by"], gate["compared"], gate["passed"]) == ("top1_agreement", 2 * IMAGES, True)
    gate = validated(run(folder, *build, "--eval-data", "set", "--max-drop", "0.1"), "build.json")["gate"]
    assert (gate["by"], gate["compared"], gate["passed"]) == ("top1", IMAGES, True)
    ran = call(*build, "--eval-data", "in", "--max-drop", "0.1", cwd=folder, store=folder / "store")
    assert ran.code == 2 and "no folder with images of a class" in ran.err


def test_gate_refuses_an_engine_that_finds_other_classes(
    case: tuple[Path, dict[str, np.ndarray]], labeled: tuple[Path, Any]
) -> None:
    folder, _ = case
    # Ranges of a black image saturate the layers on any other.
    build = ("build", *COMMON, "--precision", "int8", "--calib-data", "black", "--out", "engine")
    (folder / "black").mkdir()
    cv2.imwrite(str(folder / "black" / "0.png"), np.zeros((80, 80, 3), np.uint8))
    for extra in ((), ("--max-drop", "0.01", "--sensitivity-search", "off")):
        ran = call(*build, "--eval-data", "set", *extra, cwd=folder, store=folder / "store")
        assert ran.code == 6 and "top-1 accuracy" in ran.err, ran.err
    ran = call(*build, "--eval-data", "in", "--gate-agreement", "1", cwd=folder, store=folder / "store")
    assert ran.code == 6 and "the same best class as fp32 for" in ran.err, ran.err
