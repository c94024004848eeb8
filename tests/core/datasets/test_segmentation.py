"""Masks of labelled data: YOLO polygons and COCO's three forms."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_coco

from yolotrt_core.datasets import reader
from yolotrt_core.datasets.dataset import DataSet
from yolotrt_core.errors import UsageError

LABELS = ("cat", "dog")
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
TRIANGLE = "1 0.1 0.2 0.5 0.2 0.5 0.6\n"


def read(path: Path, masks: bool = True, **options: Any) -> DataSet:
    return reader.read(path, LABELS, options=reader.LabelOptions(masks=masks, **options))


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "set" / "images" / f"{name}.jpg").touch()
    (tmp_path / "set" / "labels" / "a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (tmp_path / "set" / "labels" / "b.txt").write_text(TRIANGLE)
    return tmp_path / "set"


def coco(folder: Path, *segmentations: object) -> Path:
    """Write an annotation file of one image, 40x20, with an object for each segmentation."""
    annotations = [
        {"id": n, "image_id": 7, "category_id": 17, "bbox": [0, 0, 4, 4], "segmentation": given}
        for n, given in enumerate(segmentations)
    ]
    (folder / "a.jpg").touch()
    return write_coco(folder, CATEGORIES, annotations=annotations)


def test_polygons_of_yolo_labels(yolo: Path) -> None:
    data = read(yolo)
    assert data.has_masks
    np.testing.assert_allclose(data.images[0].boxes, [[0.5, 0.5, 0.5, 0.5]])
    (mask,) = data.images[1].masks
    assert mask is not None
    np.testing.assert_allclose(mask.scaled(40, 20).polygons, [[4, 4, 20, 4, 20, 12]])
    assert not read(yolo, masks=False).has_masks


def test_boxes_are_digested_as_before_and_masks_too(yolo: Path) -> None:
    """Of boxes alone: the count, the form and the three arrays of each image, as artifacts already are keyed."""
    expected = hashlib.sha256()
    for box, class_id in (([0.5, 0.5, 0.5, 0.5], 0), ([0.3, 0.4, 0.4, 0.6 - 0.2], 1)):
        expected.update(b"1 False\n" + np.array(box).tobytes() + np.array([class_id]).tobytes() + b"\0")
    assert read(yolo, masks=False).digest == expected.hexdigest()
    first = read(yolo).digest
    (yolo / "labels" / "b.txt").write_text("1 0.1 0.2 0.5 0.2 0.4 0.6\n")  # the same box
    assert read(yolo, masks=False).digest == expected.hexdigest()
    assert len({first, read(yolo).digest, expected.hexdigest()}) == 3


def test_masks_follow_excluded_classes_and_duplicates(yolo: Path) -> None:
    (yolo / "labels" / "b.txt").write_text(TRIANGLE * 2 + "0 0 0 1 0 1 1\n")
    (yolo / "classes.txt").write_text("cat\ndog\n")
    image = read(yolo, class_map={"dog": "-"}).images[1]
    assert image.class_ids.tolist() == [0]
    (mask,) = image.masks
    assert mask is not None
    assert mask.polygons[0].tolist() == [0, 0, 1, 0, 1, 1]


def test_labels_of_which_some_are_boxes(yolo: Path) -> None:
    with (yolo / "labels" / "b.txt").open("a") as file:
        file.write("0 0.5 0.5 0.1 0.1\n0 0.3 0.5 0.1 0.1\n")
    with pytest.raises(UsageError, match=r"2 of 4 objects of .* have a box but no mask, the first in `images/b.jpg`"):
        read(yolo)
    assert read(yolo, masks=False).boxes == 4
    for name in ("a", "b"):
        (yolo / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert not read(yolo).has_masks


def test_forms_of_coco(tmp_path: Path) -> None:
    polygons = [[0, 0, 4, 0, 4, 4], [8, 8, 9.5, 8, 9, 9]]
    long, short = {"size": [20, 40], "counts": [0, 20, 780]}, {"size": [20, 40], "counts": "0d0\\h0"}
    masks = read(coco(tmp_path, polygons, long, short)).images[0].masks
    assert [mask and [part.tolist() for part in mask.polygons] for mask in masks] == [polygons, [], []]
    assert [mask and mask.rle for mask in masks] == [None, long, short]
    first = read(coco(tmp_path, long)).digest
    assert read(coco(tmp_path, long, short)).digest != first != read(coco(tmp_path, short)).digest


def test_coco_without_masks(tmp_path: Path) -> None:
    """Exports of detection data have empty lists."""
    for absent in ([], [[]], None):
        assert not read(coco(tmp_path, absent, absent)).has_masks
    with pytest.raises(UsageError, match="1 of 2 objects of"):
        read(coco(tmp_path, [], [[0, 0, 4, 0, 4, 4]]))


@pytest.mark.parametrize(
    "wrong",
    [
        "text", 3, {}, [3], [[0, 0, 4, 4]], [[0, 0, 4, 0, 4]], [[0, 0, 4, 0, 4, "x"]], [[0, 0, 4, 0, 4, True]],
        [[0, 0, 4, 0, 4, float("nan")]], {"size": [20, 40]}, {"size": [20], "counts": ""},
        {"size": [20, 40], "counts": [0, 20]}, {"size": [20, 40], "counts": [-1, 801]},
        {"size": [20, 40], "counts": [0.5, 799.5]}, {"size": [True, 40], "counts": "0"},
        {"size": [20, 40], "counts": 3},
    ],
)  # fmt: skip
def test_a_segmentation_that_is_none(tmp_path: Path, wrong: object) -> None:
    path = coco(tmp_path, wrong)
    with pytest.raises(UsageError, match=r"annotation 0: expected `segmentation` as a list of polygons"):
        read(path)
    assert read(path, masks=False).boxes == 1, json.dumps(wrong)
