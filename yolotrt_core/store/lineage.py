"""Lineage of artifacts, and differences between actions and records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from yolotrt_core.store.action import Action, Record
from yolotrt_core.types import Json


@dataclass(frozen=True, slots=True)
class Lineage:
    """A record and the origin of each of its inputs.

    Attributes:
        inputs: input name to the lineage of the record that produced it, or to the SHA-256 of a source
            (a checkpoint, images).
    """

    record: Record
    inputs: Mapping[str, Lineage | str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two actions differ.

    Attributes:
        path: dotted, e.g. `options.workspace`. found: the record's value. wanted: the action's value;
            either is `ABSENT` if the field is missing.
    """

    path: str
    found: Json
    wanted: Json


ABSENT = "(absent)"


def inputs_of(record: Record) -> dict[str, str]:
    """Return the SHA-256 of each input of a record's action."""
    inputs = record.action.get("inputs")
    return {name: str(digest) for name, digest in inputs.items()} if isinstance(inputs, dict) else {}


def find_producers(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records that produced each output digest, newest first."""
    producers: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.created, reverse=True):
        for sha256 in {blob.sha256 for blob in record.outputs.values()}:
            producers.setdefault(sha256, []).append(record)
    return producers


def trace_lineage(records: Iterable[Record], record: Record) -> Lineage:
    """Trace a record's inputs back to the sources.

    Args:
        records: every record of the store.
    """
    producers = find_producers(records)

    def walk(current: Record, above: frozenset[str]) -> Lineage:
        inputs: dict[str, Lineage | str] = {}
        for name, digest in inputs_of(current).items():
            # A stage may return its input unchanged and then appears as its producer.
            origins = [m for m in producers.get(digest, ()) if digest not in inputs_of(m).values()]
            maker = next((m for m in origins if m.key not in above), None)
            inputs[name] = walk(maker, above | {maker.key}) if maker is not None else digest
        return Lineage(current, inputs)

    return walk(record, frozenset({record.key}))


def find_nearest(records: Iterable[Record], action: Action) -> tuple[Record, tuple[Difference, ...]] | None:
    """Return the most similar record of the same stage and plugin, and the differences.

    Records with the same inputs come first, then those with the fewest differences, then the newest. None if the
    stage never ran.
    """
    material = action.material()
    best: tuple[tuple[int, int], Record, tuple[Difference, ...]] | None = None
    for record in sorted(records, key=lambda r: r.created, reverse=True):
        plugin = record.action.get("plugin")
        name = plugin.get("name") if isinstance(plugin, dict) else None
        if record.action.get("stage") != action.stage or name != action.plugin.name:
            continue
        differences = tuple(_differences(record.action, material))
        distance = sum(d.path.startswith("inputs.") for d in differences), len(differences)
        if best is None or distance < best[0]:
            best = distance, record, differences
    return best[1:] if best is not None else None


def _differences(found: Mapping[str, Json], wanted: Mapping[str, Json]) -> Iterator[Difference]:
    ours, theirs = dict(_leaves(wanted)), dict(_leaves(found))
    for path in sorted(ours.keys() | theirs.keys()):
        a, b = theirs.get(path, ABSENT), ours.get(path, ABSENT)
        # 1, 1.0 and true give different keys though Python compares them equal.
        if a != b or type(a) is not type(b):
            yield Difference(path, a, b)


def _leaves(value: Mapping[str, Json], path: str = "") -> Iterator[tuple[str, Json]]:
    for name, inner in value.items():
        here = f"{path}.{name}" if path else name
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, here)
        else:
            yield here, inner
