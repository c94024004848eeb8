"""Data sets in the forms people have them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError

LABELS = ("cat", "dog")


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two images of 40x20 in YOLO layout, one with two boxes and one with none."""
    for name in ("a", "b"):
        for kind in ("images", "labels"):
            (tmp_path / kind / "val").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "images" / "val" / f"{name}.jpg"), np.zeros((20, 40, 3), np.uint8))
    (tmp_path / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.1 0.2\n")
    return tmp_path


def _yaml(root: Path, text: str) -> Path:
    path = root / "set.yaml"
    path.write_text(text)
    return path


def test_a_folder_in_yolo_layout(yolo: Path) -> None:
    data = reader.read(yolo, LABELS)
    assert [p.name for p in data.images] == ["images/val/a.jpg", "images/val/b.jpg"]
    np.testing.assert_allclose(data.images[0].xywh(20, 40), [[10, 5, 20, 10], [8, 3, 4, 4]])
    assert data.images[0].class_ids.tolist() == [0, 1]
    assert len(data.images[1].class_ids) == 0
    assert data.boxes == 2


@pytest.mark.parametrize("place", ["images/val", "images"])
def test_a_folder_of_images_finds_its_labels(yolo: Path, place: str) -> None:
    assert reader.read(yolo / place, LABELS).boxes == 2


@pytest.mark.parametrize("names", ["names: [cat, dog]", "names:\n  0: cat\n  1: dog", "names: {'1': dog, '0': cat}"])
@pytest.mark.parametrize("place", ["path: .", "path:", ""])
def test_a_description(yolo: Path, names: str, place: str) -> None:
    described = _yaml(yolo, f"{place}\ntrain: images/val\nval: images/val\n{names}\n")
    data = reader.read(described, LABELS)
    assert (data.boxes, data.labels) == (2, LABELS)
    assert reader.read(yolo, LABELS).boxes == 2  # the folder of one description is that description


@pytest.mark.parametrize("names", ["", "names:"])
def test_a_description_without_names(yolo: Path, names: str) -> None:
    assert reader.read(_yaml(yolo, f"val: images/val\n{names}\n"), LABELS).labels == ()


def test_a_description_that_tells_only_how_many_classes_there_are(yolo: Path) -> None:
    assert len(reader.read(_yaml(yolo, "val: images/val\nnc: 2\n"), LABELS).labels) == 2
    with pytest.raises(UsageError, match="has 1 class, the model has 2"):
        reader.read(_yaml(yolo, "val: images/val\nnc: 1\n"), LABELS)


def test_a_part_beside_the_description_may_be_called_as_roboflow_does(yolo: Path) -> None:
    own = yolo / "set"
    own.mkdir()
    for kind in ("images", "labels"):
        (yolo / kind).rename(own / kind)
    described = _yaml(own, "val: ../images/val\n")
    assert reader.read(described, LABELS).boxes == 2
    (yolo / "images" / "val").mkdir(parents=True)
    with pytest.raises(UsageError, match="no image in"):  # what is meant literally goes first
        reader.read(described, LABELS)


def _images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("inside", "outside", "names"),
    [
        ((), ("far/a/images/1.jpg",), ["1.jpg"]),
        ((), ("far/a/images/1.jpg", "far/b/images/1.jpg"), ["a/images/1.jpg", "b/images/1.jpg"]),
        (("1.jpg",), ("far/1.jpg",), ["1.jpg", "far/1.jpg"]),
        (("1.jpg", "far/1.jpg"), ("far/1.jpg",), ["1.jpg", "elsewhere/far/1.jpg", "far/1.jpg"]),
    ],
)
def test_images_outside_the_data_set_are_all_kept(
    tmp_path: Path, inside: tuple[str, ...], outside: tuple[str, ...], names: list[str]
) -> None:
    base, top = _images(tmp_path / "set", *inside), _images(tmp_path / "elsewhere", *outside)
    base.mkdir(exist_ok=True)
    places = [base, *{(top / name).parent for name in outside}, top]  # the last holds them again
    described = _yaml(tmp_path, f"path: {base}\nval: {json.dumps(list(map(str, places)))}\n")
    files, found, _ = reader.list_images(described)
    assert found == names
    assert sorted(files) == sorted([*(base / name for name in inside), *(top / name for name in outside)])
    assert all(str(file).endswith(name) for file, name in zip(files, found, strict=True))


@pytest.mark.parametrize("unreadable", [True, False])
def test_a_list_file_that_is_no_text(yolo: Path, unreadable: bool) -> None:
    if unreadable:
        (yolo / "val.txt").symlink_to("/proc/self/mem")  # for root too
    else:
        (yolo / "val.txt").write_bytes(b"images/val/a.jpg\n\xff\n")
    with pytest.raises(UsageError, match="cannot read the image list"):
        reader.read(_yaml(yolo, "val: val.txt"), LABELS)


def test_a_description_with_a_list_file(yolo: Path) -> None:
    (yolo / "val.txt").write_text("images/val/a.jpg\n")
    data = reader.read(_yaml(yolo, "val: val.txt\nnames: [cat, dog]\n"), LABELS)
    assert [p.name for p in data.images] == ["images/val/a.jpg"]


def test_an_outline_is_taken_as_its_box(yolo: Path) -> None:
    (yolo / "labels" / "val" / "b.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.6\n")
    box = reader.read(yolo, LABELS).images[1].boxes
    np.testing.assert_allclose(box, [[0.3, 0.4, 0.4, 0.4]])


def _coco(root: Path, categories: list[dict[str, object]], **changes: object) -> Path:
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 17, "bbox": [8, 3, 4, 4], "iscrowd": 1},
    ]
    images = [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 40}]
    path = root / "instances_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories} | changes))
    return path


def test_coco_json(yolo: Path) -> None:
    place = yolo / "images" / "val"
    data = reader.read(_coco(place, [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]), LABELS)
    image = data.images[0]
    np.testing.assert_array_equal(image.xywh(20, 40), [[10, 5, 20, 10], [8, 3, 4, 4]])
    assert image.class_ids.tolist() == [1, 0]
    assert image.crowd.tolist() == [False, True]
    assert image.path.is_file()


def test_coco_json_beside_the_images_folder(yolo: Path) -> None:
    (yolo / "annotations").mkdir()
    path = _coco(yolo / "annotations", [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}])
    assert reader.read(path, LABELS).images[0].path == yolo / "images" / "val" / "a.jpg"


def test_where_coco_images_were_looked_for_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "images"  # `images` beside the JSON's folder is the folder itself
    folder.mkdir()
    path = _coco(folder, [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}])
    with pytest.raises(UsageError, match="cannot find the images") as told:
        reader.read(path, LABELS)
    places = str(told.value.hint).removeprefix("searched in ").split(", ")
    assert f"`{folder}`" in places
    assert len(places) == len(set(places))


def test_coco_categories_of_other_names_go_in_order(yolo: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = yolo / "images" / "val"
    data = reader.read(_coco(place, [{"id": 18, "name": "B"}, {"id": 17, "name": "A"}]), LABELS)
    assert data.images[0].class_ids.tolist() == [1, 0]
    assert "matched by order" in caplog.text


def test_coco_categories_the_model_lacks(yolo: Path) -> None:
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 19, "name": "cow"}]
    with pytest.raises(UsageError, match="has 3 categories, the model has 2 classes without `cow`"):
        reader.read(_coco(yolo, categories), LABELS)


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
        ({"category_id": 3}, "annotation 5: `categories` has no `3`"),
        ({"category_id": None}, "`categories` has no `None`"),
        ({"category_id": []}, "`categories` has no"),
        ({"category_id": float("inf")}, "`categories` has no"),
        ({"image_id": 8}, "is not a COCO annotation file: invalid or missing fields"),
    ],
)
def test_a_coco_annotation_that_is_none(yolo: Path, change: dict[str, object], words: str) -> None:
    annotation = {"id": 5, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10]} | change
    categories: list[dict[str, object]] = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    path = _coco(yolo / "images" / "val", categories, annotations=[annotation])
    with pytest.raises(UsageError, match=words):
        reader.read(path, LABELS)


def test_labels_of_another_class_count(yolo: Path) -> None:
    (yolo / "labels" / "val" / "b.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UsageError, match="have class 7, the model has classes 0 to 1"):
        reader.read(yolo, LABELS)
    with pytest.raises(UsageError, match="has 3 classes, the model has 2"):
        reader.read(_yaml(yolo, "val: images/val\nnames: [cat, dog, cow]\n"), LABELS)


def test_an_empty_label_folder(yolo: Path) -> None:
    (yolo / "labels" / "val" / "a.txt").unlink()
    with pytest.raises(UsageError, match="no labels for the 2 images"):
        reader.read(yolo, LABELS)


@pytest.mark.parametrize(
    "line",
    ["cat 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0.5 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1", "0 320 240 50 60",
     "0 nan 0.5 0.1 0.1", "nan 0.5 0.5 0.1 0.1", "inf 0.5 0.5 0.1 0.1", "1e300 0.5 0.5 0.1 0.1",
     "0 0.1 0.1 nan 0.5 0.5 0.5", "0 0.1 0.1 0.5 inf 0.5 0.5"],
)  # fmt: skip
def test_a_line_that_is_no_label(yolo: Path, line: str) -> None:
    (yolo / "labels" / "val" / "b.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(UsageError, match=r"b\.txt, line 2"):
        reader.read(yolo, LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just words", "is not a data set description"),
        ("a: [", "invalid YAML"),
        ("names: [cat, dog]", "has no images for `val`"),
        ("val: nowhere\nnames: [cat, dog]", "which does not exist"),
        ("val: 3\nnames: [cat, dog]", "which does not exist"),
        (f"val: {'x' * 300}", "file name too long"),
        ("val: images/val\nnames: 3", "invalid `names` in `.*`: found `3`"),
        ("val: images/val\nnames: cat", "invalid `names` in `.*`: found `cat`"),
        ("val: images/val\nnc: many", "invalid `nc` in `.*`: expected a number of classes, found `many`"),
        ("val: images/val\nnames: {0: cat, dog: 1}", "invalid `names`"),
        ("val: images/val\nnames: {1: cat, 2: dog}", "invalid `names`"),
        ("val: 2020-13-45", "invalid YAML"),
        ("val: " + "[" * 5000, "invalid YAML"),
        (f"val: {'9' * 5000}", "invalid YAML"),
    ],
)
def test_a_description_that_is_none(yolo: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader.read(_yaml(yolo, text), LABELS)


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


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        reader.read(tmp_path / "nowhere", LABELS)


def test_classes_in_another_order_are_refused_and_other_names_reported(
    yolo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match=r"class 0 is `Dog` in `.*` and `cat` in the model: same classes in ano"):
        reader.read(_yaml(yolo, "val: images/val\nnames: [Dog, cat]\n"), LABELS)
    assert reader.read(_yaml(yolo, "val: images/val\nnames: [' CAT', dog]\n"), LABELS).boxes == 2
    assert reader.read(_yaml(yolo, "val: images/val\nnames: [x, y]\n"), ("class0", "class1")).boxes == 2
    assert not caplog.text
    assert reader.read(_yaml(yolo, "val: images/val\nnames: [cat, cow]\n"), LABELS).boxes == 2
    assert "class 1 is `cow` in `" in caplog.text
    with pytest.raises(UsageError, match="has `nc: 3`, but 2 names"):
        reader.read(_yaml(yolo, "val: images/val\nnc: 3\nnames: [cat, dog]\n"), LABELS)


def test_an_object_that_is_written_twice_is_there_once(yolo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (yolo / "labels" / "val" / "a.txt").open("a") as file:
        file.write("0 0.50 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.4\n")
    data = reader.read(yolo, LABELS)
    assert data.images[0].boxes.tolist() == [[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.1, 0.2], [0.5, 0.5, 0.5, 0.4]]
    assert "ignoring duplicate labels" in caplog.text
