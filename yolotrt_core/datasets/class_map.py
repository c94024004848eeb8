"""Matching of a data set's classes with a model's, by name or as the user says."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolotrt_core.console.text import counted, nearest, printable
from yolotrt_core.datasets.class_names import yaml_document
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, read_text

_log = logging.getLogger(__name__)

EXCLUDED = "-"
_SHOWN = 10  # rows of the table in an error
_NUMBERED = re.compile(r"(class)? ?(\d+)")


@dataclass(frozen=True, slots=True)
class DataClass:
    """A class of a data set.

    Attributes:
        id: as in the labels. name: None if unknown. boxes: number of its boxes.
    """

    id: int | str
    name: str | None
    boxes: int


@dataclass(slots=True)
class _Matching:
    """The state of one matching: classes of a data set to class ids of a model; None: its boxes are excluded."""

    path: Path
    classes: Sequence[DataClass]
    labels: Sequence[str]
    found: dict[int | str, int | None]
    things: str = "boxes"

    @property
    def missing(self) -> list[DataClass]:
        """Classes that have boxes and no class of the model."""
        return [c for c in self.classes if c.boxes and c.id not in self.found]

    @property
    def free(self) -> list[int]:
        """Classes of the model that no class of the data set with boxes has."""
        return sorted(set(range(len(self.labels))) - {self.found.get(c.id) for c in self.classes if c.boxes})

    def refusal(self, reason: str) -> UsageError:
        """Return an error with the classes of both sides."""
        import shlex

        first = (self.missing or list(self.classes))[0]
        theirs = first.name or str(first.id)
        example = shlex.quote(f"{theirs}=NAME")  # the only class left of the model may well be another
        return UsageError(
            f"cannot match the classes of `{self.path}` with the model's: {reason}",
            hint=f"pass `--class-map {example}` ({shlex.quote(f'{theirs}={EXCLUDED}')} excludes its {self.things}), or "
            f"use the data set that the model was trained for\n{self._table()}",
        )

    def _table(self) -> str:
        rows = [("data set", self.things, "model")]
        order = [*self.missing, *(c for c in self.classes if c.id in self.found and c.boxes)]
        for c in order[:_SHOWN]:
            ours = self.found.get(c.id)
            known = EXCLUDED if c.id in self.found else "?"
            rows.append(
                (_shown(c.id, c.name), str(c.boxes), known if ours is None else _shown(ours, self.labels[ours]))
            )
        rows += [("", "", _shown(number, self.labels[number])) for number in self.free[:_SHOWN]]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"  {a.ljust(widths[0])}  {b.rjust(widths[1])}  {c}" for a, b, c in rows]
        more = len(order) - _SHOWN, len(self.free) - _SHOWN
        if max(more) > 0:
            lines.append(f"  and {max(more[0], 0)} more of the data set, {max(more[1], 0)} more of the model")
        return "\n".join(lines)


def match_classes(
    classes: Sequence[DataClass],
    labels: Sequence[str],
    path: Path,
    class_map: Mapping[str, str] | None = None,
    *,
    by_order: str | None = None,
    things: str = "boxes",
) -> dict[int | str, int | None]:
    """Find the class of a model that each class of a data set is.

    By name: exact, else by letters and digits in any case if only one pair fits. Where no name matches because one
    side has none, by order if `by_order` allows it. Classes without boxes may stay without.

    Args:
        labels: the model's class names. path: the data set, for messages.
        class_map: name or id of a class of the data set to name or id of one of the model, or `-`: its boxes are
            excluded.
        by_order: why the order cannot be relied on; None if it can. things: what has a class, for messages.

    Returns:
        Class id of the model by id of the data set; None for boxes to exclude.

    Raises:
        UsageError: a class with boxes that the model does not have, or an unknown class in `class_map`.
    """
    matching = _Matching(path, classes, labels, _as_told(class_map or {}, classes, labels, path), things)
    _by_name(matching)
    if not matching.missing:
        return matching.found
    named = _is_named([c.name for c in classes]), _is_named(labels)
    if matching.found or all(named):
        missing = matching.missing
        raise matching.refusal(
            f"{counted(len(missing), 'class')} with {things} {'is' if len(missing) == 1 else 'are'} missing in the "
            f"model, {'' if len(missing) == 1 else 'the first '}`{printable(missing[0].name or str(missing[0].id))}`"
        )
    without = f"the {'data set' if not named[0] else 'model'} has no class names"
    if by_order is not None:
        raise matching.refusal(f"{without}, and {by_order}")
    _log.warning("%s: the class ids of `%s` are taken as the model's", without, path)
    matching.found.update({c.id: number for number, c in enumerate(classes)})
    return matching.found


def _as_told(
    class_map: Mapping[str, str], classes: Sequence[DataClass], labels: Sequence[str], path: Path
) -> dict[int | str, int | None]:
    names = [c.name if c.name is not None else str(c.id) for c in classes]
    found: dict[int | str, int | None] = {}
    for theirs, ours in class_map.items():
        place = _number_of(theirs, names, [str(c.id) for c in classes])
        if place is None:
            raise UsageError(
                f"`--class-map` names `{theirs}`, which `{path}` does not have", hint=nearest(theirs, names)
            )
        target = None if ours == EXCLUDED else _number_of(ours, labels, [str(n) for n in range(len(labels))])
        if target is None and ours != EXCLUDED:
            raise UsageError(
                f"`--class-map` names `{ours}`, which the model does not have", hint=nearest(ours, list(labels))
            )
        found[classes[place].id] = target
    return found


def _number_of(text: str, names: Sequence[str], ids: Sequence[str]) -> int | None:
    """Return the position of a class given by name, by id, or by a name of other case."""
    if names.count(text) == 1:
        return list(names).index(text)
    if text in ids:
        return ids.index(text)
    alike = [number for number, name in enumerate(names) if plain_name(name) == plain_name(text)]
    return alike[0] if len(alike) == 1 else None


def _by_name(matching: _Matching) -> None:
    if [c.name for c in matching.classes] == list(matching.labels):  # a name may occur twice
        for number, c in enumerate(matching.classes):
            matching.found.setdefault(c.id, number)
        return
    labels = Counter(matching.labels)
    exact = {name: number for number, name in enumerate(matching.labels) if labels[name] == 1}
    for c in matching.classes:
        if c.name in exact and c.id not in matching.found:
            matching.found[c.id] = exact[c.name]
    # What is left must be the only one of its kind on both sides.
    rest = [c for c in matching.classes if c.id not in matching.found and c.name is not None]
    theirs = Counter(plain_name(c.name) for c in rest if c.name is not None and c.boxes)
    ours = Counter(plain_name(name) for name in matching.labels)
    free = {plain_name(matching.labels[number]): number for number in matching.free}
    alike = []
    for c in rest:
        plain = plain_name(c.name or "")
        if plain in free and ours[plain] == 1 and theirs[plain] <= 1 and (c.boxes or not theirs[plain]):
            matching.found[c.id] = free[plain]
            alike.append(f"`{c.name}` is `{matching.labels[free[plain]]}`")
    if alike:
        more = f" and {len(alike) - 3} more" if len(alike) > 3 else ""
        _log.info("classes matched by similar names: %s%s", printable(", ".join(alike[:3])), more)
    order = [place for c in matching.classes if (place := matching.found.get(c.id)) is not None]
    if order != sorted(order):
        _log.info("the classes of `%s` are in another order than the model's: matched by name", matching.path)


def plain_name(name: str) -> str:
    """Return a name in lower case with single spaces for white space, `_` and `-`."""
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


def _is_named(names: Iterable[str | None]) -> bool:
    """Return whether these are names, not numbers in order such as `class0` or `0`."""
    for number, name in enumerate(names):
        found = None if name is None else _NUMBERED.fullmatch(plain_name(name))
        if name is not None and (found is None or int(found[2]) != number):
            return True
    return False


def _shown(number: int | str, name: str | None) -> str:
    return printable(f"{number} {name or ''}".strip())[:40]


def class_map_from(value: Any) -> dict[str, str]:
    """Read `--class-map`: a file, a table of a recipe, or `NAME=NAME[,NAME=NAME]`.

    A file is YAML or JSON with a mapping, CSV with two columns, or text with a line `NAME=NAME` per class.

    Raises:
        ValueError: nothing of these. UsageError: the file cannot be read, or an invalid file.
    """
    if isinstance(value, Mapping) and value:
        return _checked(value.items(), "the class map")
    if not isinstance(value, str):
        raise ValueError
    path = existing_path(value) if "=" not in value or len(value) < 256 else None
    if path is None and "=" in value:
        return _pairs(value.split(","), "the class map")
    if path is None:
        raise ValueError
    content = read_text(path, "the class map")
    where = f"the class map `{path}`"
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        try:
            found = json.loads(content) if suffix == ".json" else yaml_document(content, where)
        except (ValueError, RecursionError) as err:
            raise UsageError(f"invalid JSON in {where}: {err}") from err
        if not isinstance(found, Mapping):
            raise UsageError(f"{where} is not a mapping", hint="write a line `NAME: NAME` for each class")
        return _checked(found.items(), where)
    if suffix == ".csv":
        import csv

        rows = [row for row in csv.reader(content.splitlines()) if any(cell.strip() for cell in row)]
        if wrong := next((row for row in rows if len(row) != 2), None):
            raise UsageError(f"{where} needs two columns, found `{','.join(wrong)[:60]}`")
        return _checked(rows, where)
    return _pairs([line for line in content.splitlines() if line.strip() and not line.startswith("#")], where)


def _pairs(texts: Iterable[str], where: str) -> dict[str, str]:
    pairs = []
    for text in texts:
        theirs, mark, ours = text.partition("=")
        if not mark:
            raise UsageError(f"{where} has `{text.strip()[:60]}`, expected NAME=NAME")
        pairs.append((theirs, ours))
    return _checked(pairs, where)


def _checked(pairs: Iterable[Sequence[Any]], where: str) -> dict[str, str]:
    """Return names as texts, each of the data set once."""
    found: dict[str, str] = {}
    for theirs, ours in pairs:
        for value in (theirs, ours):
            # YAML reads an unquoted `no` as False.
            if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
                raise UsageError(
                    f"{where} has `{str(value)[:60]}` in place of a class name", hint="put names in quotes"
                )
        name, target = str(theirs).strip(), str(ours).strip()
        if found.setdefault(name, target) != target:
            raise UsageError(f"{where} maps `{name}` to `{found[name]}` and to `{target}`")
    if not found:
        raise UsageError(f"{where} is empty", hint="write NAME=NAME for each class")
    return found
