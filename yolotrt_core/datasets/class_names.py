"""Class names, for exporters of any framework and for data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolotrt_core.errors import UsageError


def labels_from_file(path: Path) -> tuple[str, ...]:
    """Read class names: a text file with one a line, or YAML with `names` (list, or number to name).

    Raises:
        UsageError: the file cannot be read or holds no names.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read the class names in `{path}`: {err}") from err
    if path.suffix.lower() in (".yaml", ".yml"):
        names = labels_from_yaml(text)
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise UsageError(f"`{path}` has no class names", hint="write one a line, or YAML with `names: [first, second]`")
    return names


def labels_from_yaml(text: str) -> tuple[str, ...] | None:
    """Return the `names` of a YAML text, or None.

    Raises:
        UsageError: not YAML, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as err:
        raise UsageError("class names in YAML need PyYAML, which is not installed", hint="pip install pyyaml") from err
    try:
        found = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: a date that is none, and the like
        raise UsageError(f"the class names are not YAML: {' '.join(str(err).split())}") from err
    return labels_in_order(found.get("names")) if isinstance(found, Mapping) else None


def labels_in_order(names: Any, classes: int | None = None) -> tuple[str, ...] | None:
    """Return names given as a list or as a mapping from number (or its digits); None for anything else.

    Args:
        classes: how many to return: a class without a name is called by its number, names beyond are left out.
            By default there are as many as names, and a mapping that leaves a number out is no list of names.
    """
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping):
        return None
    by_digits = {str(number): str(name) for number, name in names.items()}
    if classes is None:
        classes = len(names)
        if sorted(by_digits) != sorted(map(str, range(classes))):
            return None
    return tuple(by_digits.get(str(number), str(number)) for number in range(classes))


def numbered_labels(classes: int) -> tuple[str, ...]:
    """Return stand-ins for names that nobody knows."""
    return tuple(f"class{number}" for number in range(classes))
