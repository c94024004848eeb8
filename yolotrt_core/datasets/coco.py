"""Reader of COCO annotation files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.class_map import DataClass, match_classes
from yolotrt_core.datasets.dataset import DataSet, LabeledImage
from yolotrt_core.datasets.locations import find_below, refuse_missing_images
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import read_text
from yolotrt_core.serialization import number_from_json

_log = logging.getLogger(__name__)

_Objects = Sequence[Mapping[str, Any]]


def read_coco(path: Path, labels: Sequence[str], class_map: Mapping[str, str] | None = None) -> DataSet:
    """Read a COCO annotation file for a model with these classes.

    Annotations of images or categories that the file does not list are ignored, as pycocotools does.

    Args:
        class_map: see `match_classes`.

    Raises:
        UsageError: invalid COCO, an id that occurs twice, classes that the model does not have, or missing images.
    """
    import numpy as np

    images, annotations, categories = _document(path)
    annotations = _without_orphans(annotations, images, categories, path)
    boxes_of = Counter(a["category_id"] for a in annotations)
    index = _match(categories, boxes_of, labels, path, class_map)
    by_image: dict[Any, list[Mapping[str, Any]]] = {i["id"]: [] for i in images}
    for a in annotations:
        if index[a["category_id"]] is not None:
            by_image[a["image_id"]].append(a)
    images = sorted(images, key=lambda i: str(i["file_name"]))
    names = [str(i["file_name"]) for i in images]
    files = _find_images(path, names)
    frames = []
    for image, name, file in zip(images, names, files, strict=True):
        found = by_image[image["id"]]
        boxes = np.array([_coco_box(a, path) for a in found], np.float64).reshape(-1, 4)
        ids = np.array([index[a["category_id"]] for a in found], np.int64)
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in found], bool)
        frames.append(LabeledImage(file, name, boxes, ids, crowd, in_pixels=True))
    return DataSet(path, tuple(frames), tuple(labels))


def _document(path: Path) -> tuple[_Objects, _Objects, _Objects]:
    """Return images, annotations and categories, each with unique ids."""
    try:
        data = json.loads(read_text(path, "the annotations"))
        if not isinstance(data, dict) or not data.keys() >= {"images", "annotations", "categories"}:
            raise ValueError("expected an object with `images`, `annotations` and `categories`")
        parts = {name: data[name] for name in ("images", "annotations", "categories")}
    except (ValueError, RecursionError) as err:
        raise UsageError(f"`{path}` is not a COCO annotation file: {err}") from err
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id",)}
    for name, part in parts.items():
        if not isinstance(part, list):
            raise UsageError(f"`{path}` is not a COCO annotation file: `{name}` is not a list")
        for number, one in enumerate(part):
            wrong = next((key for key in needed[name] if not isinstance(_field(one, key), (int, float, str))), None)
            if wrong is not None:
                raise UsageError(
                    f"`{path}` is not a COCO annotation file: element {number} of `{name}`: "
                    f"expected `{wrong}` as a number or text, found `{str(_field(one, wrong))[:60]}`"
                )
        _refuse_repeated_ids(part, name, path)
    return parts["images"], parts["annotations"], parts["categories"]


def _field(one: Any, key: str) -> Any:
    return one.get(key) if isinstance(one, dict) else None


def _refuse_repeated_ids(part: _Objects, name: str, path: Path) -> None:
    seen: dict[Any, Mapping[str, Any]] = {}
    for one in part:
        if "id" not in one:
            continue
        if not isinstance(one["id"], (int, float, str)):
            raise UsageError(f"`{path}`: `id` in `{name}` must be a number or text, found `{str(one['id'])[:60]}`")
        other = seen.setdefault(one["id"], one)
        if other is not one:
            key = {"images": "file_name", "categories": "name", "annotations": "image_id"}[name]
            raise UsageError(
                f"`{path}`: two of the `{name}` have the id `{one['id']}`, with `{key}` "
                f"`{str(other.get(key))[:60]}` and `{str(one.get(key))[:60]}`",
                hint="give each its own id; files that were merged often have them twice",
            )


def _without_orphans(annotations: _Objects, images: _Objects, categories: _Objects, path: Path) -> _Objects:
    """Exclude annotations of unlisted images or categories."""
    known = {"image_id": {i["id"] for i in images}, "category_id": {c["id"] for c in categories}}
    for key, ids in known.items():
        texts = {str(one): one for one in ids}
        for a in annotations:
            if a[key] not in ids and (other := texts.get(str(a[key]))) is not None:
                raise UsageError(
                    f"`{path}`, annotation {a.get('id')}: `{key}` is {_kind(a[key])}, but the `id` of "
                    f"{'the image' if key == 'image_id' else 'its category'} is {_kind(other)}",
                    hint="write both as numbers",
                )
    kept = [a for a in annotations if all(a[key] in ids for key, ids in known.items())]
    if len(kept) < len(annotations):
        orphan = next(a for a in annotations if any(a[key] not in ids for key, ids in known.items()))
        _log.warning(
            "ignoring %s of `%s` whose image or category is not listed, the first with `image_id` %s, `category_id` %s",
            counted(len(annotations) - len(kept), "annotation"),
            path,
            str(orphan["image_id"])[:60],
            str(orphan["category_id"])[:60],
        )
    return kept


def _kind(value: Any) -> str:
    return f"the text `{value[:60]}`" if isinstance(value, str) else f"the number {value}"


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


def _match(
    categories: _Objects,
    boxes_of: Counter[Any],
    labels: Sequence[str],
    path: Path,
    class_map: Mapping[str, str] | None,
) -> dict[Any, int | None]:
    # Roboflow lists the name of the whole project as a category without boxes.
    above = {str(c["supercategory"]) for c in categories if c.get("supercategory") is not None}
    named = [(c["id"], None if c.get("name") is None else str(c["name"])) for c in categories]
    classes = [DataClass(c, name, boxes_of[c]) for c, name in named if boxes_of[c] or name not in above]
    numbers = [c.id for c in classes if isinstance(c.id, int)]
    by_order = None
    if len(classes) != len(labels):
        by_order = f"the data set has {counted(len(classes), 'class')}, the model {len(labels)}"
    elif sorted(numbers) not in (list(range(len(labels))), list(range(1, len(labels) + 1))):
        by_order = "the category ids are not 0, 1, 2, ... or 1, 2, 3, ..."
    else:
        classes.sort(key=lambda c: int(c.id))
    return match_classes(classes, labels, path, class_map, by_order=by_order)


def _find_images(path: Path, names: Sequence[str]) -> list[Path]:
    """Find the images: next to the JSON file, or in a common COCO layout."""
    part = path.stem.removeprefix("instances_")
    up = path.parent.parent
    roots = [path.parent, path.parent / "images", up / "images", up / part, up / "images" / part, up]
    files = find_below(names, roots)
    refuse_missing_images(files, names, path, roots)
    return files
