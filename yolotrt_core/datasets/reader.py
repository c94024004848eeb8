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
from yolotrt_core.datasets.yolo import MOST_CLASSES
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, read_text, user_path
from yolotrt_core.media.inputs import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
_LAYOUT_HINT = "expected images/ and labels/ beside each other, a data set YAML, or a COCO JSON file"
IMAGES_HINT = "expected a folder of images, or a data set YAML that names some"


def read(where: str | Path, labels: Sequence[str], part: Part = "val", *, labels_needed: bool = True) -> DataSet:
    """Read a labelled data set for a model of these classes.

    Args:
        where: a folder in YOLO layout, a YAML description (Ultralytics' form), or a COCO JSON file.
        labels: the model's class names. part: which part of a YAML description.
        labels_needed: whether images without any label are an error.

    Raises:
        UsageError: nothing there, no label at all, a label line that is none, or classes the model does not have.
    """
    path = user_path(where)
    if path.suffix.lower() == ".json" and path.is_file():
        data = read_coco(path, labels)
    else:
        files, named, names = list_images(path, part, _LAYOUT_HINT if labels_needed else IMAGES_HINT)
        _compare_classes(names, labels, path)
        data = DataSet(path, tuple(_labelled(f, n) for f, n in zip(files, named, strict=True)), names)
    if not data.boxes and not labels_needed:
        return data
    if not data.boxes:
        raise UsageError(f"no labels for the {counted(len(data.images), 'image')} of `{where}`", hint=_LAYOUT_HINT)
    highest = max(int(p.class_ids.max()) for p in data.images if len(p.class_ids))
    if highest >= len(labels):
        raise UsageError(
            f"the labels of `{where}` have class {highest}, the model has classes 0 to {len(labels) - 1}",
            hint="is this the data set the model was trained for?",
        )
    return data


def refuse_missing(where: str | Path, hint: str = _LAYOUT_HINT) -> None:
    """Check that there is something at a place before anything is made for it.

    Raises:
        UsageError: there is not.
    """
    if existing_path(where, hint) is None:
        raise UsageError(f"there is no data set `{where}`", hint=hint)


def check(where: str | Path, part: Part = "val", *, labels_needed: bool = True) -> None:
    """Check what can be told of a data set before a model's classes are known: that it names images.

    Raises:
        UsageError: as `read`, but nothing about labels.
    """
    path = user_path(where)
    hint = _LAYOUT_HINT if labels_needed else IMAGES_HINT
    refuse_missing(path, hint)
    if not (path.suffix.lower() == ".json" and path.is_file()):
        list_images(path, part, hint)


def list_images(
    where: str | Path, part: Part = "val", hint: str = _LAYOUT_HINT
) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """List the images of a folder or YAML description, sorted, with names that are the same on every machine.

    Args:
        hint: what to say was expected, where labels may not matter.

    Returns:
        Files, their names, and the class names (stand-ins if only their number is told, else empty). A file's name is
        relative to the data set; outside it, the last parts of its path, as few as tell all of them apart.

    Raises:
        UsageError: nothing there, not YAML, no such part, no image, or names of classes that are none.
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
        raise UsageError(f"`{where}` is no data set", hint=hint)
    described_as = _read_yaml(path)
    base = user_path(str(described_as.get("path") or "."))
    base = base if base.is_absolute() else path.parent / base
    places = described_as.get(part)
    if not places:
        raise UsageError(f"`{path}` names no images for `{part}`", hint=f"it has {', '.join(map(str, described_as))}")
    places = [str(p) for p in (places if isinstance(places, list) else [places])]
    return *_sorted_images([_place(base, p) for p in places], base, hint), _class_names(described_as, path)


def _place(base: Path, text: str) -> Path:
    """Return where a part's images are.

    Roboflow's exports say `../train/images` of a folder that lies beside the description itself.
    """
    place, inside = base / text, base / text.removeprefix("../")
    return inside if existing_path(place) is None and existing_path(inside) is not None else place


def _class_names(described_as: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    told, classes = described_as.get("names"), described_as.get("nc")
    if told is None and classes is not None:
        if not isinstance(classes, int) or not 0 < classes < MOST_CLASSES:
            raise UsageError(f"`nc` of `{path}` is no number of classes: found `{str(classes)[:60]}`")
        return numbered_labels(classes)
    names = () if told is None else labels_in_order(told)
    if names and isinstance(classes, int) and classes != len(names):
        raise UsageError(f"`{path}` says `nc: {classes}` and has {counted(len(names), 'name')} in `names`")
    if names is None:
        raise UsageError(
            f"`names` of `{path}` are no class names: found `{str(told)[:60]}`",
            hint="expected a list, or a name for each number from 0 on",
        )
    return names


def _sorted_images(places: Iterable[Path], base: Path, hint: str) -> tuple[list[Path], list[str]]:
    files = {file: None for place in places for file in _images_at(place)}
    if not files:
        raise UsageError(f"no image in `{', '.join(map(str, places))}`", hint=hint)
    found = {file.relative_to(base).as_posix(): file for file in files if file.is_relative_to(base)}
    found |= _told_apart([file for file in files if not file.is_relative_to(base)], found.keys())
    names = sorted(found)
    return [found[n] for n in names], names


def _told_apart(files: Sequence[Path], taken: Set[str]) -> dict[str, Path]:
    """Return files by the last parts of their paths, as few as make each one's name its own."""
    found: dict[str, Path] = {}
    whole = {file: file.absolute().parts for file in files}
    for parts in range(1, max(map(len, whole.values()), default=0) + 1):
        found = {Path(*whole[file][-parts:]).as_posix(): file for file in files}
        if len(found) == len(files) and found.keys().isdisjoint(taken):
            break
    return found


def _images_at(place: Path) -> Iterator[Path]:
    if existing_path(place) is None or not (place.is_dir() or place.is_file()):
        raise UsageError(f"the data set names `{place}`, which does not exist")
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
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: a date that is none, and the like
        raise UsageError(f"`{path}` is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(described, dict):
        raise UsageError(f"`{path}` is no data set description", hint="it needs `path`, `train`, `val`, `names`")
    return described


def _labelled(image: Path, name: str) -> LabeledImage:
    import numpy as np

    table = yolo.read(image)
    return LabeledImage(image, name, table[:, 1:], table[:, 0].astype(np.int64), np.zeros(len(table), bool))


def _compare_classes(names: Sequence[str], labels: Sequence[str], path: Path) -> None:
    """Compare a data set's class names with the model's; numbers alone mean something else in each."""
    if not names:
        return
    hint = "is this the data set the model was trained for?"
    if len(names) != len(labels):
        raise UsageError(f"`{path}` has {counted(len(names), 'class')}, the model has {len(labels)}", hint=hint)
    if numbered_labels(len(names)) in (tuple(names), tuple(labels)):  # nobody knows the names of one of them
        return
    theirs, ours = ([" ".join(name.lower().split()) for name in told] for told in (names, labels))
    other = [number for number, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    if not other:
        return
    first = f"class {other[0]} is `{names[other[0]]}` in `{path}` and `{labels[other[0]]}` in the model"
    if sorted(theirs) == sorted(ours):
        raise UsageError(
            f"{first}: the same classes in another order",
            hint="bring `names` and the numbers in the labels into the model's order",
        )
    more = f", and {counted(len(other) - 1, 'other class')} are named differently too" if other[1:] else ""
    _log.warning("%s%s: %s", first, more, hint)
