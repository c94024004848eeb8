"""Reader of data sets: YOLO folders, YAML descriptions, lists of images and COCO JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.text import counted
from yolotrt_core.datasets import yolo
from yolotrt_core.datasets.class_map import DataClass, match_classes
from yolotrt_core.datasets.class_names import labels_from_file
from yolotrt_core.datasets.dataset import DataSet, LabeledImage
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.media.inputs import IMAGE_SUFFIXES, select_files
from yolotrt_core.types import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.datasets.description import Part

_LAYOUT_HINT = "expected a folder with images/ and labels/, a data set YAML, a list of images, or a COCO JSON file"
IMAGES_HINT = "expected a folder of images, a list of images, or a data set YAML"
_CLASSES_HINT = "use the data set that the model was trained for"
_NAME_FILES = ("classes.txt", "obj.names")  # of LabelImg and Label Studio, of Darknet and CVAT


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How labels are taken.

    Attributes:
        class_map: classes of the data set to those of the model, see `match_classes`; by default by name.
        allow_unlabeled: whether more than half of the images may have no label file.
        masks: whether masks are read too, for a model that finds some.
        whole_images: whether images have one class each, from a folder per class, for a model without boxes.
    """

    class_map: Mapping[str, str] | None = None
    allow_unlabeled: bool = False
    masks: bool = False
    whole_images: bool = False

    @classmethod
    def of_task(cls, task: Task, class_map: Mapping[str, str] | None, allow_unlabeled: bool) -> LabelOptions:
        """Return the options for a model of this task."""
        return cls(class_map, allow_unlabeled, masks=task == "segment", whole_images=task == "classify")


def read(
    where: str | Path,
    labels: Sequence[str],
    part: Part = "val",
    *,
    options: LabelOptions | None = None,
    labels_needed: bool = True,
) -> DataSet:
    """Read a labeled data set for a model with these classes.

    Args:
        where: a folder in YOLO layout, a YAML description (Ultralytics' form), a text file with an image per line, or
            a COCO JSON file.
        labels: the model's class names. part: split of a YAML description.
        options: how to take its labels. labels_needed: whether images without any label are an error.

    Raises:
        UsageError: no data set, no labels, an invalid label line, classes that the model does not have, label files
            missing for more than half of the images, or masks wanted that only some of the objects have.
    """
    options = options or LabelOptions()
    path = user_path(where)
    if options.whole_images:
        return _read_whole_images(path, labels, part, options.class_map, labels_needed=labels_needed)
    if path.suffix.lower() == ".json" and path.is_file():
        from yolotrt_core.datasets.coco import read_coco

        data = read_coco(path, labels, options.class_map, masks=options.masks)
    else:
        files, named, names = list_images(path, part, _LAYOUT_HINT if labels_needed else IMAGES_HINT)
        names = names or _names_next_to(path, files[0])
        images = tuple(_read_labels(f, n, options.masks) for f, n in zip(files, named, strict=True))
        data = _matched(DataSet(path, images, names), labels, options.class_map)
    if any(mask is not None for p in data.images for mask in p.masks):
        _refuse_partial_masks(data)
    else:
        data = replace(data, images=tuple(replace(p, masks=()) if p.masks else p for p in data.images))
    if not data.boxes and labels_needed:
        raise UsageError(
            f"no labels for the {counted(len(data.images), 'image')} of `{where}`", hint=_expected_labels(data)
        )
    if data.boxes and data.unlabeled * 2 > len(data.images) and not options.allow_unlabeled:
        raise UsageError(
            f"{data.unlabeled} of {len(data.images)} images of `{where}` have no label file",
            hint=f"{_expected_labels(data)}; `--allow-unlabeled` takes them as images without objects",
        )
    return data


def _read_whole_images(
    path: Path, labels: Sequence[str], part: Part, class_map: Mapping[str, str] | None, *, labels_needed: bool
) -> DataSet:
    """Read images with one class each; without any class if there are no folders and labels are not needed."""
    from yolotrt_core.datasets.class_folders import LAYOUT_HINT, image_of_class, read_class_folders

    data = read_class_folders(path, labels, part, class_map)
    if data is None and not labels_needed:
        files, names, _ = list_images(path, part, IMAGES_HINT)
        data = DataSet(path, tuple(image_of_class(f, n, None) for f, n in zip(files, names, strict=True)))
    if data is None or not data.images:
        raise UsageError(f"no folder with images of a class in `{path}`", hint=LAYOUT_HINT)
    return data


def refuse_missing(where: str | Path, hint: str = _LAYOUT_HINT) -> None:
    """Check that a data set exists, before expensive work.

    Raises:
        UsageError: it does not exist.
    """
    if existing_path(where, hint) is None:
        raise UsageError(f"the data set `{where}` does not exist", hint=hint)


def check(where: str | Path, part: Part = "val", *, labels_needed: bool = True) -> None:
    """Check that a data set has images, before the model's classes are known.

    Raises:
        UsageError: as `read`, without checks of labels.
    """
    path = user_path(where)
    hint = _LAYOUT_HINT if labels_needed else IMAGES_HINT
    refuse_missing(path, hint)
    if not (path.suffix.lower() == ".json" and path.is_file()):
        list_images(path, part, hint)


def list_images(
    where: str | Path, part: Part = "val", hint: str = _LAYOUT_HINT
) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """List the images of a folder, YAML description or text file, sorted, with machine-independent names.

    Args:
        hint: hint of errors, which depends on whether labels are needed.

    Returns:
        Files, their names, and the class names (placeholders if only their number is known, empty if unknown). A name
        is the path relative to the data set; outside it, the shortest unique end of the path.

    Raises:
        UsageError: no data set, invalid YAML, unknown part, no image, or invalid class names.
    """
    from yolotrt_core.datasets import description

    path = user_path(where)
    refuse_missing(where, hint)
    if path.is_dir():
        described = sorted(p for p in path.iterdir() if p.suffix.lower() in description.SUFFIXES)
        if len(described) == 1 and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir()):
            return list_images(described[0], part, hint)
        root = path / "images" if (path / "images").is_dir() else path
        return *_sorted_images([root], path, hint), ()
    if path.suffix.lower() == ".txt":
        return *_sorted_images([path], path.parent, hint), ()
    if path.suffix.lower() not in description.SUFFIXES:
        raise UsageError(f"`{where}` is not a data set", hint=hint)
    found = description.read_description(path, part)
    return *_sorted_images(found.places, found.base, hint), found.names


def _sorted_images(places: Iterable[Path], base: Path, hint: str) -> tuple[list[Path], list[str]]:
    files = {file: None for place in places for file in _images_at(place, base)}
    if not files:
        raise UsageError(f"no image in `{', '.join(map(str, places))}`", hint=hint)
    found = {file.relative_to(base).as_posix(): file for file in files if file.is_relative_to(base)}
    found |= _shorten_paths([file for file in files if not file.is_relative_to(base)], found.keys())
    names = sorted(found)
    return [found[n] for n in names], names


def _shorten_paths(files: Sequence[Path], taken: Set[str]) -> dict[str, Path]:
    """Return files by the shortest unique end of their paths."""
    found: dict[str, Path] = {}
    whole = {file: file.absolute().parts for file in files}
    for parts in range(1, max(map(len, whole.values()), default=0) + 1):
        found = {Path(*whole[file][-parts:]).as_posix(): file for file in files}
        if len(found) == len(files) and found.keys().isdisjoint(taken):
            break
    return found


def _images_at(place: Path, base: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from select_files(place.rglob("*"), IMAGE_SUFFIXES, place)
    elif place.suffix.lower() == ".txt":
        from yolotrt_core.datasets.locations import read_image_list

        yield from read_image_list(place, base)
    else:
        yield place


def _read_labels(image: Path, name: str, masks: bool) -> LabeledImage:
    import numpy as np

    found = yolo.read(image)
    is_labeled = found is not None
    if found is None:
        found = yolo.Labels(np.zeros((0, 5)), ())
    ids, crowd = found.rows[:, 0].astype(np.int64), np.zeros(len(found.rows), bool)
    polygons = found.masks if masks else ()
    return LabeledImage(image, name, found.rows[:, 1:], ids, crowd, labeled=is_labeled, masks=polygons)


def _names_next_to(path: Path, image: Path) -> tuple[str, ...]:
    """Return the class names that annotation tools write next to images and labels; empty without such a file."""
    folder = path if path.is_dir() else path.parent
    for place in (folder, yolo.label_file(image).parent):
        for name in _NAME_FILES:
            if (place / name).is_file():
                return labels_from_file(place / name)
    return ()


def _matched(data: DataSet, labels: Sequence[str], class_map: Mapping[str, str] | None) -> DataSet:
    """Return a data set in YOLO form with the class ids of the model."""
    import numpy as np

    ids, boxes = np.unique(np.concatenate([p.class_ids for p in data.images]), return_counts=True)
    if not len(ids):
        return data
    counts = dict(zip(ids.tolist(), boxes.tolist(), strict=True))
    names, highest = data.labels, int(ids[-1])
    if highest >= (len(names) or len(labels)):
        other = f"the model has classes 0 to {len(labels) - 1}"
        other = f"but it lists only {counted(len(names), 'class')}" if names else other
        raise UsageError(
            f"the labels of `{data.path}` have class {highest}, {other}",
            hint="correct the labels or the class names" if names else _CLASSES_HINT,
        )
    classes = [DataClass(n, names[n] if names else None, counts.get(n, 0)) for n in range(len(names) or len(labels))]
    by_order = None
    if len(classes) != len(labels):
        by_order = f"the data set has {counted(len(classes), 'class')}, the model {len(labels)}"
    found = match_classes(classes, labels, data.path, class_map, by_order=by_order)
    index = np.array([-1 if (ours := found.get(n)) is None else ours for n in range(len(classes))], np.int64)
    if (index[ids] == ids).all():
        return data
    return replace(data, images=tuple(_renumbered(p, index) for p in data.images))


def _renumbered(image: LabeledImage, index: NDArray[np.int64]) -> LabeledImage:
    class_ids = index[image.class_ids]
    kept = class_ids >= 0
    return replace(
        image,
        boxes=image.boxes[kept],
        class_ids=class_ids[kept],
        crowd=image.crowd[kept],
        masks=tuple(mask for mask, keep in zip(image.masks, kept.tolist(), strict=False) if keep),
    )


def _refuse_partial_masks(data: DataSet) -> None:
    """Refuse labels of which only some have a mask: mask mAP would count the others as never found.

    Raises:
        UsageError: names the first image with an object without one.
    """
    missing = [(image.name, sum(mask is None for mask in image.masks)) for image in data.images]
    missing = [(name, count) for name, count in missing if count]
    if missing:
        raise UsageError(
            f"{sum(count for _, count in missing)} of {counted(data.boxes, 'object')} of `{data.path}` have a box but "
            f"no mask, the first in `{missing[0][0]}`",
            hint="label all objects with masks; with boxes only, a segmentation model is evaluated by its boxes",
        )


def _expected_labels(data: DataSet) -> str:
    """Return where the label file of the first image without one is expected."""
    image = next((p for p in data.images if not p.labeled), None)
    return _LAYOUT_HINT if image is None else f"expected `{yolo.label_file(image.path)}` for `{image.path}`"
