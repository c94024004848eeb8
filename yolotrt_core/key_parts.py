"""What tells a stage that took part in an answer from another, for the answer's cache key."""

from __future__ import annotations

from typing import Any

from yolotrt_core.options import key_material
from yolotrt_core.registry import Registered
from yolotrt_core.serialization import to_json
from yolotrt_core.stages import PlacedBuilder
from yolotrt_core.types import Json


def stage_parts(found: Registered, options: Any, *, timed: bool = False) -> dict[str, Json]:
    """Return what tells a stage with these options from another.

    Args:
        timed: the answer is a speed, which options that are in no other key change too.

    Raises:
        PluginError: a module named in its `sources` does not exist.
    """
    return {"code": to_json(found.identity), "options": dict(key_material(options, found.name, every=timed))}


def session_parts(found: Registered, options: Any, *, timed: bool = False) -> dict[str, Json]:
    """Return what tells a session that a stage opens here with these options from others.

    Args:
        found: a builder that can run here, or an exporter that runs its models. timed: as for `stage_parts`.

    Raises:
        PluginError: a module named in its `session_sources` does not exist.
        StageError: there is nothing here to run on.
    """
    stage = found.stage
    return {
        "code": to_json(found.session_identity),
        "options": dict(key_material(options, found.name, every=timed)),
        "tools": dict(stage.fingerprint(options)),
        "place": dict(stage.place(options)) if isinstance(stage, PlacedBuilder) else {},
    }
