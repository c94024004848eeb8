"""Data sets in the forms people have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_coco

from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError

LABELS = ("cat", "dog")


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
    with pytest.raises(UsageError, match="have class 1, but it lists only 1 class"):
        reader.read(_yaml(yolo, "val: images/val\nnc: 1\n"), LABELS)
    with pytest.raises(UsageError, match="the data set has 3 classes, the model 2"):
        reader.read(_yaml(yolo, "val: images/val\nnc: 3\n"), LABELS)


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


@pytest.mark.parametrize(
    ("description", "working_folder"),
    [
        ("repo/data/set.yaml", "repo"),  # as YOLOv5 has it: `python val.py --data data/set.yaml`
        ("repo/data/set.yaml", "elsewhere"),  # the same, called from anywhere
        ("repo/set.yaml", "elsewhere"),  # relative to the description
        ("other/set.yaml", "repo"),  # relative to the working folder
    ],
)
def test_a_path_is_relative_to_the_description_the_working_folder_or_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, description: str, working_folder: str
) -> None:
    _images(tmp_path, "datasets/x/images/val/a.jpg")
    for folder in ("repo/data", "elsewhere/deep", "other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / working_folder)
    path = tmp_path / description
    path.write_text("path: ../datasets/x\nval: images/val\n")
    assert reader.list_images(path)[1] == ["images/val/a.jpg"]


def test_every_place_that_was_searched_is_named(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (yolo / "here").mkdir()
    monkeypatch.chdir(yolo / "here")
    (yolo / "data").mkdir()
    path = yolo / "data" / "set.yaml"
    path.write_text("path: gone/x\nval: ../images/val\n")
    with pytest.raises(UsageError, match=r"refers to `.*`, which does not exist") as refused:
        reader.read(path, LABELS)
    for above in (yolo / "data", yolo / "here", yolo):
        assert f"`{above / 'gone/x/../images/val'}`" in str(refused.value.hint)
        assert f"`{above / 'gone/x/images/val'}`" in str(refused.value.hint)


def test_paths_with_the_separators_of_windows(yolo: Path) -> None:
    (yolo / "val.txt").write_text("images\\val\\a.jpg\n")
    for text in ("val: images\\val", "val: val.txt"):
        assert reader.read(_yaml(yolo, text), LABELS).boxes == 2


@pytest.mark.parametrize("lines", ["./images/val/{}.jpg", "{root}/images/val/{}.jpg", "images/val/{}.jpg"])
@pytest.mark.parametrize("place", ["val.txt", "splits/val.txt"])
def test_a_list_of_images_is_relative_to_itself_or_the_data_set(yolo: Path, lines: str, place: str) -> None:
    (yolo / "splits").mkdir()
    text = "".join(lines.format(name, root=yolo) + "\r\n" for name in "ab")
    (yolo / place).write_text(f"\ufeff{text}")
    assert reader.read(_yaml(yolo, f"val: {place}"), LABELS).boxes == 2
    if place == "val.txt":
        assert [p.name for p in reader.read(yolo / place, LABELS).images] == ["images/val/a.jpg", "images/val/b.jpg"]


def test_an_image_of_a_list_that_is_missing(yolo: Path) -> None:
    (yolo / "val.txt").write_text("images/val/a.jpg\nimages/val/none.jpg\n")
    with pytest.raises(UsageError, match=r"refers to 1 image of 2 that cannot be found: `images/val/none.jpg`"):
        reader.read(yolo / "val.txt", LABELS)
    (yolo / "val.txt").write_text("data/a.jpg\ndata/b.jpg\n")
    with pytest.raises(UsageError, match=r"cannot find the images of `.*val.txt`: `data/a.jpg`, `data/b.jpg` missing"):
        reader.read(yolo / "val.txt", LABELS)


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(yolo: Path, mark: str) -> None:
    """Notepad and Excel write them; labels, names, descriptions and COCO are read as if they were not there."""
    labels = yolo / "labels" / "val" / "a.txt"
    described = _yaml(yolo, "val: images/val\nnames: [cat, dog]\n")
    names = yolo / "classes.txt"
    names.write_text("cat\ndog\n")
    coco = write_coco(yolo / "images" / "val", [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}])
    for file, where in ((labels, described), (described, described), (coco, coco), (names, yolo)):
        plain = file.read_text()
        file.write_text(plain, encoding=mark)
        if where is yolo:
            described.unlink()
        if mark == "utf-16":
            with pytest.raises(UsageError, match=f"`{file}`: it is UTF-16"):
                reader.read(where, LABELS)
            file.write_text(plain)
        assert reader.read(where, LABELS).boxes == 2


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


def test_labels_of_another_class_count(yolo: Path) -> None:
    (yolo / "labels" / "val" / "b.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UsageError, match="have class 7, the model has classes 0 to 1"):
        reader.read(yolo, LABELS)
    with pytest.raises(UsageError, match="have class 7, but it lists only 3 classes"):
        reader.read(_yaml(yolo, "val: images/val\nnames: [cat, dog, cow]\n"), LABELS)


@pytest.mark.parametrize(("missing", "is_refused"), [(8, False), (9, True)])
def test_missing_label_files_are_counted_and_refused_above_half(tmp_path: Path, missing: int, is_refused: bool) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(16):
        (tmp_path / "images" / f"{number:02}.jpg").touch()
        if number >= missing:  # the last is empty: a deliberate background
            (tmp_path / "labels" / f"{number:02}.txt").write_text("0 0.5 0.5 0.5 0.5\n" if number < 15 else "")
    if is_refused:
        with pytest.raises(UsageError, match=r"9 of 16 images of .* have no label file") as refused:
            reader.read(tmp_path, LABELS)
        assert f"expected `{tmp_path}/labels/00.txt`" in str(refused.value.hint)
    data = reader.read(tmp_path, LABELS, options=reader.LabelOptions(allow_unlabeled=is_refused))
    assert (len(data.images), data.unlabeled, data.backgrounds) == (16, missing, missing + 1)
    assert data.backgrounds_text == f"{missing + 1} images without objects, {missing} of them without a label file"


def test_classes_of_yolo_labels_are_matched_by_name(yolo: Path) -> None:
    for names, expected in (("dog, cat", [1, 0]), ("' CAT', Dog", [0, 1]), ("dog, cat, cow", [1, 0])):
        data = reader.read(_yaml(yolo, f"val: images/val\nnames: [{names}]\n"), LABELS)
        assert data.images[0].class_ids.tolist() == expected
    path = _yaml(yolo, "val: images/val\nnames: [cat, cow]\n")
    with pytest.raises(UsageError, match="is missing in the model, `cow`"):
        reader.read(path, LABELS)
    data = reader.read(path, LABELS, options=reader.LabelOptions({"cow": "-"}))
    np.testing.assert_array_equal(data.images[0].boxes, [[0.5, 0.5, 0.5, 0.5]])
    told = reader.read(path, LABELS, options=reader.LabelOptions({"cow": "dog"}))
    assert told.images[0].class_ids.tolist() == [0, 1]
    assert told.digest != data.digest  # the cache key of the accuracy gate
    with pytest.raises(UsageError, match="has `nc: 3`, but 2 names"):
        reader.read(_yaml(yolo, "val: images/val\nnc: 3\nnames: [cat, dog]\n"), LABELS)


@pytest.mark.parametrize("place", ["classes.txt", "labels/val/classes.txt", "obj.names"])
def test_class_names_beside_the_labels(yolo: Path, place: str) -> None:
    (yolo / place).write_text("dog\ncat\n")
    assert reader.read(yolo, LABELS).images[0].class_ids.tolist() == [1, 0]


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


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        reader.read(tmp_path / "nowhere", LABELS)


def test_an_object_that_is_written_twice_is_there_once(yolo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (yolo / "labels" / "val" / "a.txt").open("a") as file:
        file.write("0 0.50 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.4\n")
    data = reader.read(yolo, LABELS)
    assert data.images[0].boxes.tolist() == [[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.1, 0.2], [0.5, 0.5, 0.5, 0.4]]
    assert "ignoring duplicate labels" in caplog.text
