"""`detect` and `evaluate` of a segmentation checkpoint as users start them; truth is what the model itself finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
import torch
import upstream_layout as layout
from faster_coco_eval import mask as coco

import yolotrt_core
from command_line import Ran, call
from yolotrt_core.export.model_source import sample_path

SCHEMAS = Path(yolotrt_core.__file__).parent / "schemas"
COMMON = ("--weights", "s.pt", "--imgsz", "96", "--builder", "onnxruntime", "--precision", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("segment")
    network = layout.lively(layout.SEGMENT)
    # Prototypes of both signs on this image, else a mask is its whole box or nothing.
    norm = network.detect.proto.cv3.bn.train()
    norm.momentum = 1.0
    small = cv2.resize(cv2.imread(str(sample_path())), (96, 96))[..., ::-1].transpose(2, 0, 1)
    with torch.no_grad():
        network(torch.from_numpy(small[None] / np.float32(255)))
        norm.weight.fill_(3)
        norm.bias.zero_()
    layout.save(made / "s.pt", layout.SEGMENT, network=network.eval(), kind="SegmentationModel")
    shutil.copy(sample_path(), made / "sample.jpg")
    return made


def run(folder: Path, *arguments: str) -> Ran:
    ran = call(*arguments, cwd=folder, store=folder / "store")
    assert ran.code == 0, ran.err
    return ran


def validated(ran: Ran, schema: str) -> Any:
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads((SCHEMAS / schema).read_text()))
    return document


@pytest.fixture(scope="module")
def labeled(folder: Path) -> Path:
    """Six copies of the image, labelled with the polygons of what the model finds."""
    place = folder / "set"
    run(folder, "detect", "sample.jpg", *COMMON, "--max-det", "8", "--format", "yolo", "--label-scores", "off",
        "--annotate", "off", "--out", str(place))  # fmt: skip
    (place / "images").mkdir()
    for number in range(6):
        shutil.copy(folder / "sample.jpg", place / "images" / f"{number}.jpg")
        shutil.copy(place / "labels" / "sample.txt", place / "labels" / f"{number}.txt")
    return place


def test_json_of_detect_has_masks(folder: Path) -> None:
    document = validated(run(folder, "detect", "sample.jpg", *COMMON, "--annotate", "off", "--json"), "detect.json")
    (image,) = document["images"]
    pixels = []
    for each in image["detections"]:
        mask = coco.decode(each["segmentation"])
        assert mask.shape == (image["height"], image["width"])
        x1, y1, x2, y2 = (round(value) for value in each["box"])
        pixels.append(int(mask.sum()))
        assert mask[y1:y2, x1:x2].sum() == pixels[-1]  # nothing outside its box
    assert sum(map(bool, pixels)) > 10  # of a random network many are empty


def test_masks_are_evaluated_and_compared(folder: Path, labeled: Path) -> None:
    arguments = ("evaluate", *COMMON, "--data", str(labeled), "--against", "fp16", "--bootstrap", "100")
    document = validated(run(folder, *arguments, "--json"), "evaluate.json")
    masks = document["masks"]
    assert masks["map50"]["value"] > 0.5
    assert masks["map50"]["low"] is not None
    assert [c["label"] for c in masks["classes"]] == [c["label"] for c in document["classes"]]
    difference = masks["map50_95"]["value"] - document["against"]["masks"]["map50_95"]["value"]
    assert document["against"]["difference"]["masks"]["map50_95"]["value"] == pytest.approx(difference)
    told = run(folder, *arguments).out
    assert "class   boxes  AP50    AP50-95  mask AP50  mask AP50-95" in told
    assert "engine            mask mAP50  95%" in told
    assert f"onnxruntime fp32  {masks['map50']['value']:.4f}" in told
    assert "the difference in mask mAP50-95 is" in told


def test_labels_without_masks(folder: Path, labeled: Path) -> None:
    boxes = folder / "boxes"
    shutil.copytree(labeled, boxes)
    for file in (boxes / "labels").iterdir():
        file.write_text("0 0.5 0.5 0.2 0.2\n")
    arguments = ("evaluate", *COMMON, "--data", str(boxes), "--bootstrap", "0")
    assert validated(run(folder, *arguments, "--json"), "evaluate.json")["masks"] is None
    assert "boxes only: the labels have no masks" in run(folder, *arguments).out
    with (boxes / "labels" / "3.txt").open("a") as file:
        file.write("0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    ran = call(*arguments, cwd=folder, store=folder / "store")
    assert ran.code == 2
    assert "have a box but no mask, the first in `images/0.jpg`" in ran.err
