"""Reader of COCO annotation files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolotrt_core.console.text import nearest
from yolotrt_core.datasets.dataset import DataSet, LabeledImage
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, read_text
from yolotrt_core.serialization import number_from_json

_log = logging.getLogger(__name__)


def read_coco(path: Path, labels: Sequence[str]) -> DataSet:
    """Read a COCO annotation file for a model with these classes.

    Raises:
        UsageError: invalid COCO, classes that differ from the model's, or missing images.
    """
    import numpy as np

    try:
        data = json.loads(read_text(path, "the annotations"))
        if not isinstance(data, dict) or not data.keys() >= {"images", "annotations", "categories"}:
            raise ValueError("expected an object with `images`, `annotations` and `categories`")
        categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        images = sorted(data["images"], key=lambda i: str(i["file_name"]))
        annotations: dict[Any, list[dict[str, Any]]] = {i["id"]: [] for i in images}
        for a in data["annotations"]:
            annotations[a["image_id"]].append(a)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        reason = str(err) if isinstance(err, ValueError) else "invalid or missing fields"
        raise UsageError(f"`{path}` is not a COCO annotation file: {reason}") from err
    index = _class_index(categories, labels, path)
    root = _image_root(path, [str(i["file_name"]) for i in images[:1]])
    frames = []
    for image in images:
        found = annotations[image["id"]]
        boxes = np.array([_coco_box(a, path) for a in found], np.float64).reshape(-1, 4)
        ids = np.array([_coco_class(a, index, path) for a in found], np.int64)
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in found], bool)
        name = str(image["file_name"])
        frames.append(LabeledImage(root / name, name, boxes, ids, crowd, in_pixels=True))
    return DataSet(path, tuple(frames), tuple(labels))


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
    """Map category ids to class ids by name, or by order if the numbers are equal."""
    by_name = {name: i for i, name in enumerate(labels)}
    if all(name in by_name for name in categories.values()):
        return {key: by_name[name] for key, name in categories.items()}
    if len(categories) == len(labels):
        _log.warning("category names of `%s` differ from the model's class names: matched by order", path)
        return {key: i for i, key in enumerate(sorted(categories))}
    missing = next(name for name in categories.values() if name not in by_name)
    raise UsageError(
        f"`{path}` has {len(categories)} categories, the model has {len(labels)} classes without `{missing}`",
        hint=nearest(missing, list(labels)),
    )


def _image_root(path: Path, names: Sequence[str]) -> Path:
    """Find the folder of the images: next to the JSON file, or in a common COCO layout."""
    part = path.stem.removeprefix("instances_")
    up = path.parent.parent
    places = [path.parent, path.parent / "images", up / "images", up / part, up / "images" / part, up]
    for place in places:
        if all(existing_path(place / name) for name in names):
            return place
    raise UsageError(
        f"cannot find the images of `{path}`: `{names[0] if names else ''}` is missing",
        hint="searched in " + ", ".join(f"`{p}`" for p in dict.fromkeys(places)),
    )
