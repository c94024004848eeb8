"""Questions about records: where an artifact comes from, and why a build would not find one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from yolotrt_core.store.action import Action, Record
from yolotrt_core.types import Json


@dataclass(frozen=True, slots=True)
class Lineage:
    """A record and where each of its inputs comes from.

    Attributes:
        inputs: input name to the lineage of the record that made it, or to the SHA-256 of a source
            (a checkpoint, images) that no record made.
    """

    record: Record
    inputs: Mapping[str, Lineage | str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One part in which two actions differ.

    Attributes:
        path: dotted, e.g. `options.workspace`. found: the record's value. wanted: the action's;
            either is `ABSENT` where there is no such part.
    """

    path: str
    found: Json
    wanted: Json


ABSENT = "(absent)"


def inputs_of(record: Record) -> dict[str, str]:
    """Return input name to SHA-256 of a record's action."""
    inputs = record.action.get("inputs")
    return {name: str(digest) for name, digest in inputs.items()} if isinstance(inputs, dict) else {}


def makers(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return output digest to the records that made it, the youngest first."""
    made: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.created, reverse=True):
        for sha256 in {blob.sha256 for blob in record.outputs.values()}:
            made.setdefault(sha256, []).append(record)
    return made


def trace_lineage(records: Iterable[Record], record: Record) -> Lineage:
    """Return where a record's inputs come from, back to the sources.

    Args:
        records: every record of the store.
    """
    made = makers(records)

    def walk(current: Record, above: frozenset[str]) -> Lineage:
        inputs: dict[str, Lineage | str] = {}
        for name, digest in inputs_of(current).items():
            # A stage may return its input unchanged, and then seems to have made it.
            origins = [m for m in made.get(digest, ()) if digest not in inputs_of(m).values()]
            maker = next((m for m in origins if m.key not in above), None)
            inputs[name] = walk(maker, above | {maker.key}) if maker is not None else digest
        return Lineage(current, inputs)

    return walk(record, frozenset({record.key}))


def find_nearest(records: Iterable[Record], action: Action) -> tuple[Record, tuple[Difference, ...]] | None:
    """Return the record of the same stage and plugin that differs in fewest parts, and those parts.

    One that was made from the same inputs is nearer than any other. Of several equally near the youngest; None if the
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
        # 1 and 1.0, or 1 and true, are other keys though Python calls them equal.
        if a != b or type(a) is not type(b):
            yield Difference(path, a, b)


def _leaves(value: Mapping[str, Json], path: str = "") -> Iterator[tuple[str, Json]]:
    for name, inner in value.items():
        here = f"{path}.{name}" if path else name
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, here)
        else:
            yield here, inner
