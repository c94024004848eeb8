"""Class names of exporters and data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolotrt_core.errors import UsageError


def labels_from_file(path: Path) -> tuple[str, ...]:
    """Read class names from a text file with one per line, or YAML with `names` (list or mapping from number).

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
        raise UsageError(
            f"`{path}` has no class names", hint="write one per line, or YAML with `names: [first, second]`"
        )
    return names


def labels_from_yaml(text: str) -> tuple[str, ...] | None:
    """Return the `names` of a YAML document, or None.

    Raises:
        UsageError: not YAML, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as err:
        raise UsageError("class names in YAML need PyYAML, which is not installed", hint="pip install pyyaml") from err
    try:
        found = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: an invalid date, for example
        raise UsageError(f"invalid YAML in the class names: {' '.join(str(err).split())}") from err
    return labels_in_order(found.get("names")) if isinstance(found, Mapping) else None


def labels_in_order(names: Any, classes: int | None = None) -> tuple[str, ...] | None:
    """Return names given as a list or a mapping from number; None for anything else.

    Args:
        classes: number of names to return: missing ones are replaced by their number, further ones dropped.
            By default all names are returned; a mapping with gaps is invalid.
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
    """Return placeholders for unknown class names."""
    return tuple(f"class{number}" for number in range(classes))
