"""A stage with the plugin it comes from, and a plugin that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yolotrt_core.errors import PluginError
from yolotrt_core.plugin.options import OptionField, key_material
from yolotrt_core.plugin.stages import Availability, PlacedBuilder
from yolotrt_core.serialization import to_json
from yolotrt_core.store.action import PluginIdentity
from yolotrt_core.store.code_digest import code_digest
from yolotrt_core.types import Json

Kind = Literal["exporter", "pass", "calibrator", "builder", "postprocessor"]
KINDS: tuple[Kind, ...] = get_args(Kind)

OWN_DIST = "yolotrt-core"


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A module that claims to be a plugin: where it comes from, not yet loaded."""

    name: str
    dist: str
    version: str
    load: Any


@dataclass(frozen=True, slots=True)
class Registered:
    """One stage and the distribution that brought it.

    Attributes:
        stage: the plugin's object behind a guard, see `yolotrt_core.plugin.call_guard`. plugin: its entry point.
    """

    kind: Kind
    stage: Any
    plugin: str
    dist: str
    version: str
    options: tuple[OptionField, ...]

    @property
    def name(self) -> str:
        return str(self.stage.name)

    @property
    def identity(self) -> PluginIdentity:
        """The code of the stage as it enters a cache key.

        Raises:
            PluginError: a module or file named in `sources` does not exist.
        """
        return self.identity_of(self.stage.sources)

    @property
    def session_identity(self) -> PluginIdentity:
        """The code that runs what the stage opens, for the keys of answers: it may change without an engine's.

        Raises:
            PluginError: a module or file named in `session_sources` does not exist.
        """
        return self.identity_of(self.session_sources)

    @property
    def session_sources(self) -> tuple[str, ...]:
        """What the stage names as running what it opens, see `stages.SessionSources`."""
        return tuple(getattr(self.stage, "session_sources", self.stage.sources))

    def identity_of(self, sources: Sequence[str]) -> PluginIdentity:
        """Return the stage's identity with the text of these sources."""
        digest = code_digest(tuple(sources), f"stage `{self.name}` of `{self.dist}`")
        return PluginIdentity(self.name, self.dist, int(self.stage.stage_version), digest)

    def cache_key_material(self, options: Any, *, timed: bool = False) -> dict[str, Json]:
        """Cache-key material of the stage with these options, for an answer that it takes part in.

        Args:
            timed: the answer is a speed, which options that are in no other key change too.

        Raises:
            PluginError: a module named in its `sources` does not exist.
        """
        return {"code": to_json(self.identity), "options": dict(key_material(options, self.name, every=timed))}

    def session_key_material(self, options: Any, *, timed: bool = False) -> dict[str, Json]:
        """Cache-key material of a session that the stage opens here: a builder, or an exporter that runs its models.

        Args:
            timed: as for `cache_key_material`.

        Raises:
            PluginError: a module named in its `session_sources` does not exist.
            StageError: there is nothing here to run on.
        """
        return {
            "code": to_json(self.session_identity),
            "options": dict(key_material(options, self.name, every=timed)),
            "tools": dict(self.stage.fingerprint(options)),
            "place": dict(self.stage.place(options)) if isinstance(self.stage, PlacedBuilder) else {},
        }


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin, or one stage of it, that cannot be used, and why."""

    plugin: str
    dist: str
    version: str
    error: str
    stages: tuple[tuple[Kind, str], ...] = ()


def refuse_unavailable(found: Registered, can: Availability) -> None:
    """Raise a PluginError with reason and remedy unless `can` is ok."""
    if can.ok:
        return
    hints, whose = [can.install] if can.install else [], ""
    if found.dist != OWN_DIST:
        whose = f" of `{found.dist}`"
        if found.kind == "pass":  # nobody asked for it by name
            hints.append(f"`pip uninstall {found.dist}` builds without it")
    raise PluginError(
        f"{found.kind} `{found.name}`{whose} cannot be used here: {can.reason}", hint="; ".join(hints) or None
    )
