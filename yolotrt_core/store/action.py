"""What identifies an artifact: the action that makes it, its key, and the record of having run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from yolotrt_core.types import Json, to_json

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
