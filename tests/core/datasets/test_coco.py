"""COCO annotation files as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_coco

from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError

LABELS = ("cat", "dog")


def test_coco_json(yolo: Path) -> None:
    place = yolo / "images" / "val"
    data = reader.read(write_coco(place, [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]), LABELS)
    image = data.images[0]
    np.testing.assert_array_equal(image.xywh(20, 40), [[10, 5, 20, 10], [8, 3, 4, 4]])
    assert image.class_ids.tolist() == [1, 0]
    assert image.crowd.tolist() == [False, True]
    assert image.path.is_file()


def test_coco_json_beside_the_images_folder(yolo: Path) -> None:
    (yolo / "annotations").mkdir()
    path = write_coco(yolo / "annotations", [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}])
    assert reader.read(path, LABELS).images[0].path == yolo / "images" / "val" / "a.jpg"


def test_where_coco_images_were_looked_for_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "images"  # `images` beside the JSON's folder is the folder itself
    folder.mkdir()
    path = write_coco(folder, [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}])
    with pytest.raises(UsageError, match="cannot find the images") as told:
        reader.read(path, LABELS)
    places = str(told.value.hint).removeprefix("searched in ").split(", ")
    assert f"`{folder}`" in places
    assert len(places) == len(set(places))


def test_coco_as_roboflow_writes_it(yolo: Path) -> None:
    """Category 0 is the project, without boxes; the model has a class that the data set lacks."""
    categories = [{"id": 0, "name": "gear"}, {"id": 1, "name": "helmet", "supercategory": "gear"}]
    annotations = [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 5, 20, 10]}]
    path = write_coco(yolo / "images" / "val", categories, annotations=annotations)
    for labels, expected in ((("helmet", "vest"), 0), (("vest", "helmet"), 1)):
        assert reader.read(path, labels).images[0].class_ids.tolist() == [expected]
    with pytest.raises(UsageError, match="the data set has 1 class, the model 2"):
        reader.read(path, ("class0", "class1"))  # two categories, but one of them is the project


@pytest.mark.parametrize(
    ("ids", "is_in_order"), [((0, 1), True), ((1, 2), True), ((2, 1), True), ((1, 3), False), ((17, 18), False)]
)
def test_coco_categories_without_names_are_taken_in_order(
    yolo: Path, ids: tuple[int, int], is_in_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = [{"id": n, "image_id": 7, "category_id": n, "bbox": [1, 2, 3, 4]} for n in ids]
    path = write_coco(yolo / "images" / "val", [{"id": n} for n in ids], annotations=annotations)
    if not is_in_order:
        with pytest.raises(UsageError, match="the data set has no class names, and the category ids are not 0, 1, 2"):
            reader.read(path, LABELS)
        told = reader.LabelOptions({str(ids[0]): "dog", str(ids[1]): "-"})
        assert reader.read(path, LABELS, options=told).images[0].class_ids.tolist() == [1]
        return
    assert reader.read(path, LABELS).images[0].class_ids.tolist() == [sorted(ids).index(n) for n in ids]
    assert "has no class names" in caplog.text


def test_coco_annotations_of_nothing_are_ignored_as_pycocotools_does(
    yolo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`COCO.getAnnIds(imgIds, catIds)` of the listed images and categories, as `COCOeval` asks, leaves them out."""
    kept = {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]}
    orphans = [kept | {"id": 2, "image_id": 8}, kept | {"id": 3, "category_id": 5, "bbox": None}]
    categories: list[dict[str, object]] = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    data = reader.read(write_coco(yolo / "images" / "val", categories, annotations=[kept, *orphans]), LABELS)
    assert data.boxes == 1
    assert "ignoring 2 annotations" in caplog.text
    assert "the first with `image_id` 8, `category_id` 18" in caplog.text


@pytest.mark.parametrize(
    ("part", "key"), [("images", "file_name"), ("annotations", "image_id"), ("categories", "name")]
)
def test_coco_ids_that_occur_twice(yolo: Path, part: str, key: str) -> None:
    path = write_coco(yolo / "images" / "val", [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}])
    found = json.loads(path.read_text())
    found[part].append(found[part][0] | {key: "other"})
    path.write_text(json.dumps(found))
    words = f"two of the `{part}` have the id `{found[part][0]['id']}`, with `{key}` `.*` and `other`"
    with pytest.raises(UsageError, match=words):
        reader.read(path, LABELS)


def test_coco_ids_may_be_texts(yolo: Path) -> None:
    annotations = [{"image_id": "a", "category_id": "x", "bbox": [1, 2, 3, 4]}]
    images = [{"id": "a", "file_name": "a.jpg"}]
    categories: list[dict[str, object]] = [{"id": "x", "name": "dog"}]
    path = write_coco(yolo / "images" / "val", categories, annotations=annotations, images=images)
    assert reader.read(path, LABELS).images[0].class_ids.tolist() == [1]


def test_an_image_of_coco_that_is_missing(yolo: Path) -> None:
    categories: list[dict[str, object]] = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    images = [{"id": n, "file_name": name} for n, name in ((7, "a.jpg"), (8, "b.jpg"), (9, "0.jpg"))]
    path = write_coco(yolo / "images" / "val", categories, images=images)
    with pytest.raises(UsageError, match=r"refers to 1 image of 3 that cannot be found: `0.jpg`"):
        reader.read(path, LABELS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": None}, r"annotation 5: expected `bbox` as \[x, y, width, height\] in pixels, found `None`"),
        ({"bbox": [1, 2, 3]}, r"expected `bbox` .* found `\[1, 2, 3\]`"),
        ({"bbox": [1, 2, 3, "4"]}, "expected `bbox`"),
        ({"bbox": [1, 2, 3, None]}, "expected `bbox`"),
        ({"bbox": [1, 2, 3, 10**400]}, "expected `bbox`"),
        ({"bbox": [1, 2, 3, float("nan")]}, "expected `bbox`"),
        ({"bbox": {"x": 1}}, "expected `bbox`"),
        ({"category_id": "18"}, "annotation 5: `category_id` is the text `18`, but the `id` of .* is the number 18"),
        ({"image_id": "7"}, "annotation 5: `image_id` is the text `7`, but the `id` of the image is the number 7"),
        ({"category_id": None}, "element 0 of `annotations`: expected `category_id` as a number or text, found `None`"),
        ({"image_id": []}, r"element 0 of `annotations`: expected `image_id` as a number or text, found `\[\]`"),
        ({"id": {}}, "`id` in `annotations` must be a number or text, found `{}`"),
    ],
)
def test_a_coco_annotation_that_is_none(yolo: Path, change: dict[str, object], words: str) -> None:
    annotation = {"id": 5, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]} | change
    categories: list[dict[str, object]] = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    path = write_coco(yolo / "images" / "val", categories, annotations=[annotation])
    with pytest.raises(UsageError, match=words):
        reader.read(path, LABELS)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"images": ' + "9" * 5000,
        '{"images": []}',
        '{"images": [{}], "annotations": [], "categories": []}',
    ],
)
def test_json_that_is_no_coco(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is not a COCO annotation file"):
        reader.read(path, LABELS)
