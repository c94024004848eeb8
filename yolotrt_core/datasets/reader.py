"""Reader of data sets: YOLO folders, YAML descriptions and COCO JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from yolotrt_core.console.text import counted
from yolotrt_core.datasets import yolo
from yolotrt_core.datasets.class_names import labels_in_order, numbered_labels
from yolotrt_core.datasets.coco import read_coco
from yolotrt_core.datasets.dataset import DataSet, LabeledImage
from yolotrt_core.datasets.yolo import MAX_CLASSES
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, read_text, user_path
from yolotrt_core.media.inputs import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
_LAYOUT_HINT = "expected a folder with images/ and labels/, a data set YAML, or a COCO JSON file"
IMAGES_HINT = "expected a folder of images, or a data set YAML"
_CLASSES_HINT = "use the data set that the model was trained for"


def read(where: str | Path, labels: Sequence[str], part: Part = "val", *, labels_needed: bool = True) -> DataSet:
    """Read a labeled data set for a model with these classes.

    Args:
        where: a folder in YOLO layout, a YAML description (Ultralytics' form), or a COCO JSON file.
        labels: the model's class names. part: split of a YAML description.
        labels_needed: whether images without any label are an error.

    Raises:
        UsageError: no data set, no labels, an invalid label line, or classes that the model does not have.
    """
    path = user_path(where)
    if path.suffix.lower() == ".json" and path.is_file():
        data = read_coco(path, labels)
    else:
        files, named, names = list_images(path, part, _LAYOUT_HINT if labels_needed else IMAGES_HINT)
        _compare_classes(names, labels, path)
        data = DataSet(path, tuple(_read_labels(f, n) for f, n in zip(files, named, strict=True)), names)
    if not data.boxes and not labels_needed:
        return data
    if not data.boxes:
        raise UsageError(f"no labels for the {counted(len(data.images), 'image')} of `{where}`", hint=_LAYOUT_HINT)
    highest = max(int(p.class_ids.max()) for p in data.images if len(p.class_ids))
    if highest >= len(labels):
        raise UsageError(
            f"the labels of `{where}` have class {highest}, the model has classes 0 to {len(labels) - 1}",
            hint=_CLASSES_HINT,
        )
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
    """List the images of a folder or YAML description, sorted, with machine-independent names.

    Args:
        hint: hint of errors, which depends on whether labels are needed.

    Returns:
        Files, their names, and the class names (placeholders if only their number is known, empty if unknown). A name
        is the path relative to the data set; outside it, the shortest unique end of the path.

    Raises:
        UsageError: no data set, invalid YAML, unknown part, no image, or invalid class names.
    """
    path = user_path(where)
    refuse_missing(where, hint)
    if path.is_dir():
        described = sorted(p for p in path.iterdir() if p.suffix.lower() in (".yaml", ".yml"))
        if len(described) == 1 and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir()):
            return list_images(described[0], part, hint)
        root = path / "images" if (path / "images").is_dir() else path
        return *_sorted_images([root], path, hint), ()
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"`{where}` is not a data set", hint=hint)
    described_as = _read_yaml(path)
    base = user_path(str(described_as.get("path") or "."))
    base = base if base.is_absolute() else path.parent / base
    places = described_as.get(part)
    if not places:
        raise UsageError(f"`{path}` has no images for `{part}`", hint=f"it has {', '.join(map(str, described_as))}")
    places = [str(p) for p in (places if isinstance(places, list) else [places])]
    return *_sorted_images([_place(base, p) for p in places], base, hint), _class_names(described_as, path)


def _place(base: Path, text: str) -> Path:
    """Return the location of a part's images.

    Roboflow's exports refer by `../train/images` to a folder next to the description.
    """
    place, inside = base / text, base / text.removeprefix("../")
    return inside if existing_path(place) is None and existing_path(inside) is not None else place


def _class_names(described_as: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    given, classes = described_as.get("names"), described_as.get("nc")
    if given is None and classes is not None:
        if not isinstance(classes, int) or not 0 < classes < MAX_CLASSES:
            raise UsageError(f"invalid `nc` in `{path}`: expected a number of classes, found `{str(classes)[:60]}`")
        return numbered_labels(classes)
    names = () if given is None else labels_in_order(given)
    if names and isinstance(classes, int) and classes != len(names):
        raise UsageError(f"`{path}` has `nc: {classes}`, but {counted(len(names), 'name')} in `names`")
    if names is None:
        raise UsageError(
            f"invalid `names` in `{path}`: found `{str(given)[:60]}`",
            hint="expected a list, or a mapping from each number starting at 0",
        )
    return names


def _sorted_images(places: Iterable[Path], base: Path, hint: str) -> tuple[list[Path], list[str]]:
    files = {file: None for place in places for file in _images_at(place)}
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


def _images_at(place: Path) -> Iterator[Path]:
    if existing_path(place) is None or not (place.is_dir() or place.is_file()):
        raise UsageError(f"the data set refers to `{place}`, which does not exist")
    if place.is_dir():
        yield from (p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    elif place.suffix.lower() == ".txt":
        for line in read_text(place, "the image list").splitlines():
            if line.strip():
                yield Path(line.strip()) if Path(line.strip()).is_absolute() else place.parent / line.strip()
    else:
        yield place


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as err:
        raise UsageError(
            "a data set YAML needs PyYAML, which is not installed", hint="`pip install yolotrt-core[eval]`"
        ) from err
    try:
        described = yaml.safe_load(read_text(path, "the description"))
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: an invalid date, for example
        raise UsageError(f"invalid YAML in `{path}`: {' '.join(str(err).split())}") from err
    if not isinstance(described, dict):
        raise UsageError(f"`{path}` is not a data set description", hint="expected `path`, `train`, `val` and `names`")
    return described


def _read_labels(image: Path, name: str) -> LabeledImage:
    import numpy as np

    table = yolo.read(image)
    return LabeledImage(image, name, table[:, 1:], table[:, 0].astype(np.int64), np.zeros(len(table), bool))


def _compare_classes(names: Sequence[str], labels: Sequence[str], path: Path) -> None:
    """Compare a data set's class names with the model's."""
    if not names:
        return
    if len(names) != len(labels):
        raise UsageError(
            f"`{path}` has {counted(len(names), 'class')}, the model has {len(labels)}", hint=_CLASSES_HINT
        )
    if numbered_labels(len(names)) in (tuple(names), tuple(labels)):  # the names of one are unknown
        return
    theirs, ours = ([" ".join(name.lower().split()) for name in group] for group in (names, labels))
    other = [number for number, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    if not other:
        return
    first = f"class {other[0]} is `{names[other[0]]}` in `{path}` and `{labels[other[0]]}` in the model"
    if sorted(theirs) == sorted(ours):
        raise UsageError(
            f"{first}: same classes in another order",
            hint="reorder `names` and the class ids of the labels to match the model",
        )
    more = f", and {counted(len(other) - 1, 'other class')} differ, too" if other[1:] else ""
    _log.warning("%s%s: %s", first, more, _CLASSES_HINT)
