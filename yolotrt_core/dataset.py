"""Reads pictures with known boxes: YOLO folders and YAML descriptions, and COCO JSON."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core import yolo_labels
from yolotrt_core.errors import UsageError
from yolotrt_core.labels import labels_in_order, numbered_labels
from yolotrt_core.options import nearest
from yolotrt_core.pictures import PICTURES
from yolotrt_core.serialization import number_from_json
from yolotrt_core.user_paths import existing_path, text_of, user_path
from yolotrt_core.wording import counted
from yolotrt_core.yolo_labels import MOST_CLASSES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
_LAYOUT_HINT = "expected images/ and labels/ beside each other, a data set YAML, or a COCO JSON file"
PICTURES_HINT = "expected a folder of pictures, or a data set YAML that names some"


@dataclass(frozen=True, slots=True, eq=False)
class LabeledPicture:
    """One picture and what is on it.

    Attributes:
        path: the file. name: unique in its data set, the same on every machine.
        boxes: float64 (M, 4): cx, cy, w, h as shares of the picture, or, with `in_pixels`, x, y, w, h.
        class_ids: int64 (M,). crowd: bool (M,): regions that count neither as found nor as missed.
    """

    path: Path
    name: str
    boxes: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    in_pixels: bool = False

    def xywh(self, height: int, width: int) -> NDArray[np.float64]:
        """Return x, y (top left), w, h in pixels of a picture of this size."""
        import numpy as np

        if self.in_pixels or not len(self.boxes):
            return self.boxes
        size = np.array([width, height, width, height], np.float64)
        scaled = self.boxes * size
        scaled[:, :2] -= scaled[:, 2:] / 2
        return scaled


@dataclass(frozen=True, slots=True)
class DataSet:
    """Pictures in a fixed order, with the names of their classes (stand-ins if only their number is told), if any."""

    path: Path
    pictures: tuple[LabeledPicture, ...]
    labels: tuple[str, ...] = ()

    @property
    def boxes(self) -> int:
        return sum(len(p.class_ids) for p in self.pictures)

    @property
    def digest(self) -> str:
        """SHA-256 of all labels in order; the pictures themselves are not in it."""
        digest = hashlib.sha256()
        for p in self.pictures:
            digest.update(f"{len(p.class_ids)} {p.in_pixels}\n".encode())
            for values in (p.boxes, p.class_ids, p.crowd):
                digest.update(values.tobytes())
        return digest.hexdigest()


def read(where: str | Path, labels: Sequence[str], part: Part = "val", *, labels_needed: bool = True) -> DataSet:
    """Read a labelled data set for a model of these classes.

    Args:
        where: a folder in YOLO layout, a YAML description (Ultralytics' form), or a COCO JSON file.
        labels: the model's class names. part: which part of a YAML description.
        labels_needed: whether pictures without any label are an error.

    Raises:
        UsageError: nothing there, no label at all, a label line that is none, or classes the model does not have.
    """
    path = user_path(where)
    if path.suffix.lower() == ".json" and path.is_file():
        data = _read_coco(path, labels)
    else:
        files, named, names = list_pictures(path, part, _LAYOUT_HINT if labels_needed else PICTURES_HINT)
        _compare_classes(names, labels, path)
        data = DataSet(path, tuple(_labelled(f, n) for f, n in zip(files, named, strict=True)), names)
    if not data.boxes and not labels_needed:
        return data
    if not data.boxes:
        raise UsageError(f"no labels for the {counted(len(data.pictures), 'picture')} of `{where}`", hint=_LAYOUT_HINT)
    highest = max(int(p.class_ids.max()) for p in data.pictures if len(p.class_ids))
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
    """Check what can be told of a data set before a model's classes are known: that it names pictures.

    Raises:
        UsageError: as `read`, but nothing about labels.
    """
    path = user_path(where)
    hint = _LAYOUT_HINT if labels_needed else PICTURES_HINT
    refuse_missing(path, hint)
    if not (path.suffix.lower() == ".json" and path.is_file()):
        list_pictures(path, part, hint)


def list_pictures(
    where: str | Path, part: Part = "val", hint: str = _LAYOUT_HINT
) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """List the pictures of a folder or YAML description, sorted, with names that are the same on every machine.

    Args:
        hint: what to say was expected, where labels may not matter.

    Returns:
        Files, their names, and the class names (stand-ins if only their number is told, else empty). A file's name is
        relative to the data set; outside it, the last parts of its path, as few as tell all of them apart.

    Raises:
        UsageError: nothing there, not YAML, no such part, no picture, or names of classes that are none.
    """
    path = user_path(where)
    refuse_missing(where, hint)
    if path.is_dir():
        described = sorted(p for p in path.iterdir() if p.suffix.lower() in (".yaml", ".yml"))
        if len(described) == 1 and not any(p.suffix.lower() in PICTURES for p in path.iterdir()):
            return list_pictures(described[0], part, hint)
        root = path / "images" if (path / "images").is_dir() else path
        return *_sorted_pictures([root], path, hint), ()
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"`{where}` is no data set", hint=hint)
    described_as = _read_yaml(path)
    base = user_path(str(described_as.get("path") or "."))
    base = base if base.is_absolute() else path.parent / base
    places = described_as.get(part)
    if not places:
        raise UsageError(f"`{path}` names no pictures for `{part}`", hint=f"it has {', '.join(map(str, described_as))}")
    places = [str(p) for p in (places if isinstance(places, list) else [places])]
    return *_sorted_pictures([_place(base, p) for p in places], base, hint), _class_names(described_as, path)


def _place(base: Path, text: str) -> Path:
    """Return where a part's pictures are.

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


def _sorted_pictures(places: Iterable[Path], base: Path, hint: str) -> tuple[list[Path], list[str]]:
    files = {file: None for place in places for file in _pictures_at(place)}
    if not files:
        raise UsageError(f"no picture in `{', '.join(map(str, places))}`", hint=hint)
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


def _pictures_at(place: Path) -> Iterator[Path]:
    if existing_path(place) is None or not (place.is_dir() or place.is_file()):
        raise UsageError(f"the data set names `{place}`, which does not exist")
    if place.is_dir():
        yield from (p for p in place.rglob("*") if p.suffix.lower() in PICTURES)
    elif place.suffix.lower() == ".txt":
        for line in text_of(place, "the picture list").splitlines():
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
        described = yaml.safe_load(text_of(path, "the description"))
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: a date that is none, and the like
        raise UsageError(f"`{path}` is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(described, dict):
        raise UsageError(f"`{path}` is no data set description", hint="it needs `path`, `train`, `val`, `names`")
    return described


def _labelled(picture: Path, name: str) -> LabeledPicture:
    import numpy as np

    table = yolo_labels.read(picture)
    return LabeledPicture(picture, name, table[:, 1:], table[:, 0].astype(np.int64), np.zeros(len(table), bool))


def _read_coco(path: Path, labels: Sequence[str]) -> DataSet:
    import numpy as np

    try:
        data = json.loads(text_of(path, "the annotations"))
        if not isinstance(data, dict) or not data.keys() >= {"images", "annotations", "categories"}:
            raise ValueError("expected an object with `images`, `annotations` and `categories`")
        categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        images = sorted(data["images"], key=lambda i: str(i["file_name"]))
        annotations: dict[Any, list[dict[str, Any]]] = {i["id"]: [] for i in images}
        for a in data["annotations"]:
            annotations[a["image_id"]].append(a)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        # A plain ValueError is told in words, by us or by the JSON reader.
        words = str(err) if isinstance(err, ValueError) else "its entries are not as COCO's are"
        raise UsageError(f"`{path}` is no COCO annotation file: {words}") from err
    index = _class_index(categories, labels, path)
    root = _image_root(path, [str(i["file_name"]) for i in images[:1]])
    pictures = []
    for image in images:
        found = annotations[image["id"]]
        boxes = np.array([_coco_box(a, path) for a in found], np.float64).reshape(-1, 4)
        ids = np.array([_coco_class(a, index, path) for a in found], np.int64)
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in found], bool)
        name = str(image["file_name"])
        pictures.append(LabeledPicture(root / name, name, boxes, ids, crowd, in_pixels=True))
    return DataSet(path, tuple(pictures), tuple(labels))


def _coco_box(annotation: Mapping[str, Any], path: Path) -> list[float]:
    found = annotation.get("bbox")
    numbers = [number_from_json(value) for value in found] if isinstance(found, list) else []
    box = [number for number in numbers if number is not None]
    if len(numbers) != 4 or len(box) != 4:
        raise UsageError(
            f"`{path}`, annotation {annotation.get('id')}: expected `bbox` as [x, y, width, height] in pixels, "
            f"found `{str(found)[:60]}`"
        )
    return box


def _coco_class(annotation: Mapping[str, Any], index: Mapping[int, int], path: Path) -> int:
    found = annotation.get("category_id")
    try:
        return index[int(found)]  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, KeyError) as err:
        raise UsageError(
            f"`{path}`, annotation {annotation.get('id')}: `categories` has no `{str(found)[:60]}`",
            hint="each annotation needs the `category_id` of one of the `categories`",
        ) from err


def _class_index(categories: dict[int, str], labels: Sequence[str], path: Path) -> dict[int, int]:
    """Map category ids to class ids: by name, or in the order of the ids where there are equally many."""
    by_name = {name: i for i, name in enumerate(labels)}
    if all(name in by_name for name in categories.values()):
        return {key: by_name[name] for key, name in categories.items()}
    if len(categories) == len(labels):
        _log.warning("the categories of `%s` are named differently from the model's classes: taken in order", path)
        return {key: i for i, key in enumerate(sorted(categories))}
    missing = next(name for name in categories.values() if name not in by_name)
    raise UsageError(
        f"`{path}` has {len(categories)} categories, the model {len(labels)} classes, and none is called `{missing}`",
        hint=nearest(missing, list(labels)),
    )


def _image_root(path: Path, names: Sequence[str]) -> Path:
    """Find the folder of the pictures: beside the JSON, or where COCO and its followers put them."""
    part = path.stem.removeprefix("instances_")
    up = path.parent.parent
    places = [path.parent, path.parent / "images", up / "images", up / part, up / "images" / part, up]
    for place in places:
        if all(existing_path(place / name) for name in names):
            return place
    raise UsageError(
        f"the pictures of `{path}` are not where it says: no `{names[0] if names else ''}`",
        hint="looked in " + ", ".join(f"`{p}`" for p in dict.fromkeys(places)),
    )


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
