"""Registered stages: the plugin a stage comes from, guarded calls of its code, and its cache-key material."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yolotrt_core.errors import PluginError, YolotrtError
from yolotrt_core.plugin.options import OptionField, key_material
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.serialization import to_json
from yolotrt_core.store.action import PluginIdentity
from yolotrt_core.store.code_digest import code_digest
from yolotrt_core.types import Json

Kind = Literal["exporter", "pass", "calibrator", "builder", "postprocessor"]
KINDS: tuple[Kind, ...] = get_args(Kind)

OWN_DIST = "yolotrt-core"
# The executor reports failures of these with the stage's log; a stream raises also what the caller's frames raise.
_UNGUARDED = frozenset({"export", "apply", "calibrate", "build", "layers", "stream"})


@contextlib.contextmanager
def answering(owner: str, dist: str, member: str) -> Iterator[None]:
    """Turn an unexpected exception of a plugin's code in the block into a PluginError.

    Args:
        owner: as in ``builder `mine` of `yolotrt-mine```. member: what was called.

    Raises:
        PluginError: names owner and member. yolotrt's own errors, an interrupt, a lack of memory and a closed output
            pass as they are.
    """
    try:
        yield
    except (YolotrtError, MemoryError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as err:  # a plugin's code may fail in any way
        text = " ".join(str(err).split())[:300]
        raise PluginError(
            f"`{member}` of {owner} failed with {type(err).__name__}" + (f": {text}" if text else ""),
            hint=f"plugin bug: please report it to the authors of `{dist}`",
        ) from err


class Guarded:
    """A proxy of a stage, or of a session that it opened, whose methods fail with a PluginError only; see `answering`.

    Sessions of this project's own stages are not wrapped.
    """

    def __init__(self, target: Any, owner: str, dist: str) -> None:
        self._target, self._owner, self._dist = target, owner, dist

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        member = getattr(self._target, name)
        if not callable(member) or isinstance(member, type) or name in _UNGUARDED:
            return member

        def call(*given: Any, **named: Any) -> Any:
            with answering(self._owner, self._dist, name):
                answer = member(*given, **named)
            if name in ("open", "open_source") and self._dist != OWN_DIST:
                return Guarded(answer, f"the session of {self._owner}", self._dist)
            return answer

        return call

    def __enter__(self) -> Any:
        self._target.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._target.__exit__(*error)


def shown(value: Any) -> str:
    """Return a value as an error names it: its type, and itself where that is short."""
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    text = repr(value)
    return f"{type(value).__name__} `{text}`" if len(text) <= 60 else f"{type(value).__name__}"


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
        stage: the plugin's object, `Guarded`. plugin: its entry point.
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
    def is_own(self) -> bool:
        """Whether it is one of this project's own stages."""
        return self.dist == OWN_DIST

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
        """The code that runs what the stage opens; see `stages.Stage`."""
        return tuple(self.stage.session_sources or self.stage.sources)

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
            "place": dict(self.stage.place(options)) if self.kind == "builder" else {},
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
    if not found.is_own:
        whose = f" of `{found.dist}`"
        if found.kind == "pass":  # it runs without being named
            hints.append(f"`pip uninstall {found.dist}` builds without it")
    raise PluginError(
        f"{found.kind} `{found.name}`{whose} cannot be used here: {can.reason}", hint="; ".join(hints) or None
    )
