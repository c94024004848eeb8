"""Data sets of classification: a folder of images per class, as upstream's classification trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from yolotrt_core.datasets.class_map import DataClass, match_classes
from yolotrt_core.datasets.dataset import DataSet, LabeledImage
from yolotrt_core.datasets.description import Part
from yolotrt_core.errors import UsageError
from yolotrt_core.media.inputs import IMAGE_SUFFIXES, select_files

LAYOUT_HINT = "expected a folder per class: `DIR/CLASS/*.jpg`, or `DIR/val/CLASS/*.jpg` for the part `val`"


def read_class_folders(
    path: Path, labels: Sequence[str], part: Part, class_map: Mapping[str, str] | None
) -> DataSet | None:
    """Read a folder with a folder of images per class; None if it has no folders with images.

    Args:
        path: it, or the folder with one for each part. labels: the model's class names. class_map: see
            `match_classes`; images of excluded classes are not part of the data set.

    Returns:
        Images with one class id and no box each.

    Raises:
        UsageError: not a folder, or classes that the model does not have.
    """
    if not path.is_dir():
        raise UsageError(f"`{path}` is not a data set of a classification model", hint=LAYOUT_HINT)
    root = path / part if (path / part).is_dir() else path
    folders = [(folder, _images(folder)) for folder in sorted(p for p in root.iterdir() if p.is_dir())]
    folders = [(folder, files) for folder, files in folders if files]
    if not folders:
        return None
    classes = [DataClass(number, folder.name, len(files)) for number, (folder, files) in enumerate(folders)]
    by_order = None
    if len(classes) != len(labels):
        by_order = f"the data set has {len(classes)} classes, the model {len(labels)}"
    found = match_classes(classes, labels, path, class_map, by_order=by_order, things="images")
    images = [
        image_of_class(file, file.relative_to(root).as_posix(), class_id)
        for number, (_, files) in enumerate(folders)
        if (class_id := found.get(number)) is not None
        for file in files
    ]
    return DataSet(path, tuple(images), tuple(folder.name for folder, _ in folders))


def image_of_class(file: Path, name: str, class_id: int | None) -> LabeledImage:
    """Return an image with one class and no box; without a class if that is unknown."""
    import numpy as np

    ids = np.array([] if class_id is None else [class_id], np.int64)
    crowd = np.zeros(len(ids), np.bool_)
    return LabeledImage(file, name, np.zeros((0, 4)), ids, crowd, labeled=class_id is not None)


def _images(folder: Path) -> list[Path]:
    return sorted(select_files(folder.rglob("*"), IMAGE_SUFFIXES, folder))
