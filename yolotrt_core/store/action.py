"""What identifies an artifact: the action that makes it, its key, and the record of having run."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from yolotrt_core.serialization import number_from_json, to_json
from yolotrt_core.types import Json

SCHEMA = 1


def canonical_json(value: Json) -> str:
    """Return the one text of a JSON value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: NaN or infinity inside.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, slots=True)
class PluginIdentity:
    """Which code does the work: distribution, author's version, digest of the source text."""

    name: str
    dist: str
    stage_version: int
    source_sha256: str


@dataclass(frozen=True, slots=True)
class Action:
    """One run of one stage, described by everything that can change its output and nothing else.

    Attributes:
        stage: kind of stage: exporter, pass, calibrator, builder, parity.
        inputs: input name to SHA-256 of its content. tools: what the stage's fingerprint names.
        request, options: resolved, defaults included, in declared types.
        core_sha256: digest of the core modules that every stage runs through.
    """

    stage: str
    plugin: PluginIdentity
    request: Mapping[str, Json]
    options: Mapping[str, Json]
    inputs: Mapping[str, str]
    tools: Mapping[str, str]
    core_sha256: str

    def material(self) -> dict[str, Json]:
        """Return what is hashed, as plain JSON: what `artifacts.explain` shows."""
        shown = to_json(self)
        assert isinstance(shown, dict)
        return {"schema": SCHEMA, **shown}

    @property
    def key(self) -> str:
        """All 64 hex digits of the SHA-256 over the canonical material."""
        return hashlib.sha256(canonical_json(self.material()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """One stored file by content; size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """That an action ran, and what came out.

    Attributes:
        key: the action's key. action: its material. outputs: file name under `out` to blob.
        facts: figures the stage reported. created: UTC, ISO 8601. seconds: how long it ran.
    """

    key: str
    action: Mapping[str, Json]
    outputs: Mapping[str, Blob]
    created: str
    seconds: float
    facts: Mapping[str, Json] = field(default_factory=dict)

    @property
    def short_key(self) -> str:
        """The key as screens show it."""
        return self.key[:12]


class UnknownSchemaError(ValueError):
    """A record written by another version of the store."""


_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: object) -> bool:
    """Say whether `text` is 64 lower-case hex digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


# Control characters and lone surrogates, and what ends a line: a name is printed and typed again.
_NO_NAME = frozenset(("Cc", "Cs", "Zl", "Zp"))


def is_name(text: str) -> bool:
    """Say whether `text` can name an artifact: letters of any script, but no control character and no path."""
    path_like = "/" in text or text in ("", ".", "..")
    return not path_like and not any(unicodedata.category(c) in _NO_NAME for c in text)


def key_of_material(material: Mapping[str, Json]) -> str:
    """Return the key that an action of this material has."""
    return hashlib.sha256(canonical_json(dict(material)).encode()).hexdigest()


def record_bytes(record: Record) -> bytes:
    """Return the stored form of a record.

    Raises:
        ValueError: NaN or infinity in the facts. TypeError: facts that are no JSON.
    """
    shown = to_json(record)
    assert isinstance(shown, dict)
    del shown["key"]
    return canonical_json({"schema": SCHEMA, **shown}).encode()


def record_from_bytes(key: str, data: bytes) -> Record:
    """Rebuild a record from its stored form, believing nothing.

    Output names are checked, since they become file names when an artifact is copied out.

    Raises:
        UnknownSchemaError: written by another version. ValueError: anything else is wrong with it.
    """
    try:
        parsed = json.loads(data)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err
    if not isinstance(parsed, dict):
        raise ValueError("no JSON object")
    schema = parsed.pop("schema", None)
    if schema != SCHEMA:
        raise UnknownSchemaError(f"has schema {schema!r}, this yolotrt reads {SCHEMA}")
    action, facts, outputs = parsed.get("action"), parsed.get("facts"), parsed.get("outputs")
    if not (isinstance(action, dict) and isinstance(facts, dict) and isinstance(outputs, dict)):
        raise ValueError("has no action, outputs and facts")
    if key_of_material(action) != key:
        raise ValueError("its material does not hash to its key")
    created, seconds = parsed.get("created"), number_from_json(parsed.get("seconds"))
    if not isinstance(created, str) or seconds is None:
        raise ValueError("does not say when it was made")
    blobs = {name: _blob_from_json(name, blob) for name, blob in outputs.items()}
    return Record(key=key, action=action, outputs=blobs, created=created, seconds=seconds, facts=facts)


def _blob_from_json(name: str, data: object) -> Blob:
    sha256, size = (data.get("sha256"), data.get("size")) if isinstance(data, dict) else (None, None)
    if not (is_output_name(name) and isinstance(sha256, str) and is_sha256(sha256) and isinstance(size, int)):
        raise ValueError(f"has a bad output {name!r}")
    return Blob(sha256, size)


def is_output_name(name: str) -> bool:
    """Say whether `name` is a relative POSIX path that stays inside its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
