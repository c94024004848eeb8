"""Actions, their cache keys, and the records of executed actions."""

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
    """Return the canonical form of a JSON value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: NaN or infinity inside.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, slots=True)
class PluginIdentity:
    """Identity of a stage's code: distribution, stage version, digest of the source files."""

    name: str
    dist: str
    stage_version: int
    source_sha256: str


@dataclass(frozen=True, slots=True)
class Action:
    """One run of one stage, described by exactly what can change its output.

    Attributes:
        stage: exporter, pass, calibrator, builder or parity.
        inputs: input name to SHA-256 of its content. tools: the stage's fingerprint.
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
        """Return the cache-key material as plain JSON, as `artifacts.explain` shows it."""
        shown = to_json(self)
        assert isinstance(shown, dict)
        return {"schema": SCHEMA, **shown}

    @property
    def key(self) -> str:
        """Cache key: 64 hex digits, the SHA-256 of the canonical material."""
        return hashlib.sha256(canonical_json(self.material()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """Digest and size in bytes of one stored file."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """Record of an executed action and its outputs.

    Attributes:
        key: the action's key. action: its material. outputs: file name under `out` to blob.
        facts: values reported by the stage. created: UTC, ISO 8601. seconds: run time.
    """

    key: str
    action: Mapping[str, Json]
    outputs: Mapping[str, Blob]
    created: str
    seconds: float
    facts: Mapping[str, Json] = field(default_factory=dict)

    @property
    def short_key(self) -> str:
        """Abbreviated key for display."""
        return self.key[:12]


class UnknownSchemaError(ValueError):
    """A record written by another version of the store."""


_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: object) -> bool:
    """Return whether `text` is 64 lower-case hex digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


# Control characters, lone surrogates and line separators: names are printed and typed.
_FORBIDDEN_CATEGORIES = frozenset(("Cc", "Cs", "Zl", "Zp"))


def is_name(text: str) -> bool:
    """Return whether `text` is a valid artifact name: any script, no control character, no path."""
    path_like = "/" in text or text in ("", ".", "..")
    return not path_like and not any(unicodedata.category(c) in _FORBIDDEN_CATEGORIES for c in text)


def key_of_material(material: Mapping[str, Json]) -> str:
    """Return the cache key of an action's material."""
    return hashlib.sha256(canonical_json(dict(material)).encode()).hexdigest()


def record_bytes(record: Record) -> bytes:
    """Return the stored form of a record.

    Raises:
        ValueError: NaN or infinity in the facts. TypeError: facts that are not JSON.
    """
    shown = to_json(record)
    assert isinstance(shown, dict)
    del shown["key"]
    return canonical_json({"schema": SCHEMA, **shown}).encode()


def record_from_bytes(key: str, data: bytes) -> Record:
    """Parse and validate the stored form of a record.

    Output names are checked, since they become file names when an artifact is copied out.

    Raises:
        UnknownSchemaError: written by another version. ValueError: invalid in any other way.
    """
    try:
        parsed = json.loads(data)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err
    if not isinstance(parsed, dict):
        raise ValueError("expected a JSON object")
    schema = parsed.pop("schema", None)
    if schema != SCHEMA:
        raise UnknownSchemaError(f"has schema {schema!r}, this version reads {SCHEMA}")
    action, facts, outputs = parsed.get("action"), parsed.get("facts"), parsed.get("outputs")
    if not (isinstance(action, dict) and isinstance(facts, dict) and isinstance(outputs, dict)):
        raise ValueError("`action`, `outputs` or `facts` is missing")
    if key_of_material(action) != key:
        raise ValueError("the key does not match the material")
    created, seconds = parsed.get("created"), number_from_json(parsed.get("seconds"))
    if not isinstance(created, str) or seconds is None:
        raise ValueError("`created` or `seconds` is invalid")
    blobs = {name: _blob_from_json(name, blob) for name, blob in outputs.items()}
    return Record(key=key, action=action, outputs=blobs, created=created, seconds=seconds, facts=facts)


def _blob_from_json(name: str, data: object) -> Blob:
    sha256, size = (data.get("sha256"), data.get("size")) if isinstance(data, dict) else (None, None)
    if not (is_output_name(name) and isinstance(sha256, str) and is_sha256(sha256) and isinstance(size, int)):
        raise ValueError(f"invalid output {name!r}")
    return Blob(sha256, size)


def is_output_name(name: str) -> bool:
    """Return whether `name` is a relative POSIX path inside its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
