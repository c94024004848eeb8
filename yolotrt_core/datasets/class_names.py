"""Class names of exporters and data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import read_text


def labels_from_file(path: Path) -> tuple[str, ...]:
    """Read class names from a text file with one per line, or YAML with `names` (list or mapping from number).

    Raises:
        UsageError: the file cannot be read or holds no names.
    """
    text = read_text(path, "the class names in")
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
    found = yaml_document(text, "the class names")
    return labels_in_order(found.get("names")) if isinstance(found, Mapping) else None


def yaml_document(text: str, description: str) -> Any:
    """Return the content of a YAML document.

    Args:
        description: description of the document for errors.

    Raises:
        UsageError: not YAML, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as err:
        raise UsageError(
            f"YAML needs PyYAML, which is not installed: cannot read {description}",
            hint="`pip install yolotrt-core[eval]`",
        ) from err
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as err:  # ValueError: an invalid date, for example
        raise UsageError(f"invalid YAML in {description}: {' '.join(str(err).split())}") from err


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
