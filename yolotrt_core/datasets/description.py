"""Descriptions of data sets: YAML in Ultralytics' or Roboflow's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.class_names import labels_in_order, numbered_labels, yaml_document
from yolotrt_core.datasets.locations import find_parts
from yolotrt_core.datasets.yolo import MAX_CLASSES
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import read_text

Part = Literal["train", "val", "test"]
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Description:
    """One part of a description.

    Attributes:
        base: folder that the paths are relative to. places: folders, images or lists of images.
        names: class names (placeholders if only their number is known, empty if unknown).
    """

    base: Path
    places: tuple[Path, ...]
    names: tuple[str, ...]


def read_description(path: Path, part: Part) -> Description:
    """Read a YAML description.

    Raises:
        UsageError: invalid YAML, unknown part, a place that does not exist, or invalid class names.
    """
    described = yaml_document(read_text(path, "the description"), f"`{path}`")
    if not isinstance(described, dict):
        raise UsageError(f"`{path}` is not a data set description", hint="expected `path`, `train`, `val` and `names`")
    places = described.get(part)
    if not places:
        raise UsageError(f"`{path}` has no images for `{part}`", hint=f"it has {', '.join(map(str, described))}")
    texts = [str(p) for p in (places if isinstance(places, list) else [places])]
    base, found = find_parts(str(described.get("path") or "."), texts, path)
    return Description(base, tuple(found), _class_names(described, path))


def _class_names(described: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    given, classes = described.get("names"), described.get("nc")
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
