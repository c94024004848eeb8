"""Registry of plugins: their stages by kind and name, and the broken ones with their errors.

A plugin is loaded in its own `try`: one that cannot be used is listed with its error, and only a
build that needs one of its stages fails.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pluggy

from yolotrt_core.console.text import nearest
from yolotrt_core.errors import PluginError, UsageError, YolotrtError
from yolotrt_core.plugin import hookspecs
from yolotrt_core.plugin.claims import Claim, Claimed, choose
from yolotrt_core.plugin.declaration_checks import RESERVED, refuse_misdeclared
from yolotrt_core.plugin.options import option_fields
from yolotrt_core.plugin.registered import (
    KINDS,
    OWN_DIST,
    Broken,
    Guarded,
    Kind,
    PluginSource,
    Registered,
    answering,
    refuse_unavailable,
    shown,
)
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import ModelSource, Precision

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(slots=True)
class Registry:
    """All stages of all plugins. Make one with `Registry.discover()` or `Registry.of(modules)`."""

    manager: pluggy.PluginManager
    stages: dict[Kind, dict[str, Registered]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    broken: list[Broken] = field(default_factory=list)
    reserved_flags: frozenset[str] = frozenset()
    _warned: set[str] = field(default_factory=set)
    _contested: set[str] = field(default_factory=set)  # names of stages that two distributions claim

    @classmethod
    def discover(cls, reserved_flags: Iterable[str] = ()) -> Registry:
        """Load every plugin installed in this environment (entry-point group `yolotrt`)."""
        sources = []
        read_metadata = functools.cache(lambda dist: dist.metadata)  # each access parses it again
        for entry in importlib.metadata.entry_points(group=hookspecs.PROJECT):
            fields = read_metadata(entry.dist) if entry.dist else {"Name": "unknown distribution", "Version": ""}
            sources.append(PluginSource(entry.name, fields["Name"], fields["Version"], entry.load))
        return cls.load(sources, reserved_flags)

    @classmethod
    def of(cls, *modules: ModuleType | Any) -> Registry:
        """Load exactly these plugin modules; for tests and for embedding."""
        sources = [
            PluginSource(getattr(m, "__name__", type(m).__name__), "in-process", "0", functools.partial(lambda m: m, m))
            for m in modules
        ]
        return cls.load(sources)

    @classmethod
    def load(cls, sources: Sequence[PluginSource], reserved_flags: Iterable[str] = ()) -> Registry:
        """Load plugins in a fixed order, this project's own first, then by distribution and name."""
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        registry = cls(manager, reserved_flags=frozenset(reserved_flags))
        seen: set[tuple[str, str]] = set()
        for source in sorted(sources, key=lambda s: (s.dist != OWN_DIST, s.dist, s.name)):
            if (source.dist, source.name) not in seen:  # an editable install can list a distribution twice
                seen.add((source.dist, source.name))
                registry._load_one(source)
        return registry

    def get(self, kind: Kind, name: str) -> Registered:
        """Return the stage of this kind and name.

        Raises:
            PluginError: it does not exist, with the nearest names; or it belongs to a broken plugin,
                with the plugin's error.
        """
        for broken in self.broken:
            if (kind, name) in broken.stages and name not in self.stages[kind]:
                raise PluginError(f"{kind} `{name}` of `{broken.dist}` cannot be used: {broken.error}")
        found = self.stages[kind].get(name)
        if found is None:
            hint = "; ".join(filter(None, (nearest(name, list(self.stages[kind])), self.describe_broken())))
            raise PluginError(f"there is no {kind} named `{name}`", hint=hint)
        return found

    def usable(self, kind: Kind, name: str) -> Registered:
        """Return the stage as `get` does, refusing one that lacks its tools here.

        Raises:
            PluginError: with the reason and the command that installs what is missing.
        """
        found = self.get(kind, name)
        refuse_unavailable(found, found.stage.available())
        return found

    def describe_broken(self, name: str | None = None) -> str:
        """Name the broken plugins with their reasons; empty if there are none.

        Args:
            name: of a stage, a recipe table or a flag without its dashes; broken stages that have it are named alone.
        """
        word = (name or "").replace("-", "_")
        owners = [b for b in self.broken if name and any(f"{word}_".startswith(f"{s}_") for _, s in b.stages)]
        listed = ", ".join(f"`{b.plugin}` of `{b.dist}` ({b.error})" for b in owners or self.broken)
        if not listed:
            return ""
        return f"it belongs to the broken plugin {listed}" if owners else f"broken plugins: {listed}"

    def able(self, found: Registered, *, to_run: bool = False) -> Availability:
        """Return whether a stage that may not be needed works, and with `to_run` runs; a fault in it is a reason."""
        try:
            can: Availability = found.stage.available()
            return found.stage.runnable() if can.ok and to_run else can
        except YolotrtError as err:
            self.warn_of_skipped(found, err)
            return Availability(False, err.message)

    def warn_of_skipped(self, found: Registered, err: YolotrtError) -> None:
        """Warn, once, that a stage is skipped where it is not needed."""
        self.warn_once(f"{found.kind} `{found.name}` of `{found.dist}` is skipped: {err.message}")

    def warn_once(self, text: str) -> None:
        """Warn, unless the same warning was given before."""
        if text not in self._warned:
            self._warned.add(text)
            _log.warning("%s", text)

    def passes(self) -> list[Registered]:
        """Return all passes in the order they run."""
        return sorted(self.stages["pass"].values(), key=lambda r: (r.stage.order, r.name))

    def builders(self) -> list[Registered]:
        """Return all builders, the preferred first."""
        return sorted(self.stages["builder"].values(), key=lambda r: (-r.stage.priority, r.name))

    def default_builder(self, *, to_run: bool) -> Registered:
        """Return the preferred builder that builds and, with `to_run`, runs engines on this machine.

        Raises:
            PluginError: none does, with every builder's reason.
        """
        reasons: list[str] = []
        for candidate in self.builders():
            can = self.able(candidate, to_run=to_run)
            if can.ok:
                if to_run and reasons:
                    _log.info("running with `%s`, not with %s", candidate.name, "; ".join(reasons))
                return candidate
            reasons.append(f"`{candidate.name}`: {can.reason}" + (f" ({can.install})" if can.install else ""))
        wanted = "run" if to_run else "build"
        raise PluginError(f"no builder can {wanted} an engine here", hint="; ".join(reasons) or "no builder installed")

    def reference_runtime(self) -> Registered:
        """Return the builder whose sessions run plain ONNX, to check exports and compare engines with.

        Raises:
            PluginError: none is installed, or it lacks its tools.
        """
        for found in self.stages["builder"].values():
            if found.stage.is_reference_runtime:
                return self.usable("builder", found.name)
        raise PluginError("no builder is a reference runtime", hint=self.describe_broken() or "see `plugins`")

    def default_calibrator(self, precision: Precision | str) -> Registered | None:
        """Return the calibrator of a precision where the user names none."""
        return next((r for r in self.stages["calibrator"].values() if precision in r.stage.default_for), None)

    def select_exporter(self, source: ModelSource) -> Registered:
        """Return the exporter that plugins claim this source for; see `claims.choose` for several.

        Raises:
            UsageError: no plugin claims it, or several do with equal right.
            PluginError: the only answer is not an exporter's name, or names one that cannot be used.
        """
        claims: dict[str, Claimed] = {}
        faults: list[PluginError] = []
        for plugin, answer in self._ask("yolotrt_select_exporter", source=source):
            if answer is None:
                continue
            try:
                found = self._named_exporter(plugin, answer)
            except PluginError as err:
                faults.append(err)
                continue
            reason = answer.reason if isinstance(answer, Claim) else ""
            if found.name not in claims or reason:
                claims[found.name] = Claimed(found, reason)
        if not claims and faults:
            raise faults[0]
        for fault in faults:
            self.warn_once(f"{fault.message}; it is skipped")
        if not claims:
            known = ", ".join(f"`{n}`" for n in sorted(self.stages["exporter"])) or "none"
            raise UsageError(
                f"`{source.path}` is not a model that an installed exporter can read",
                hint=f"installed exporters: {known}; force one with `--exporter NAME`",
            )
        chosen, warning = choose(source.path, list(claims.values()))
        if warning:
            self.warn_once(warning)
        return chosen

    def _named_exporter(self, plugin: str, answer: Any) -> Registered:
        """Return the exporter that a plugin's `yolotrt_select_exporter` named."""
        chose = f"plugin {plugin} chose {shown(answer)} in `yolotrt_select_exporter`"
        name = answer.exporter if isinstance(answer, Claim) else answer
        if not isinstance(name, str):
            raise PluginError(f"{chose}; the name of an exporter, a `Claim` or None is expected")
        try:
            return self.get("exporter", name)
        except PluginError as err:
            raise PluginError(f"{chose}: {err.message}", hint=err.hint) from err

    def postprocessor(self, head: str) -> Registered:
        """Return the postprocessor that decodes this head.

        Raises:
            PluginError: no installed plugin does.
        """
        found = self.find_postprocessor(head)
        if found is None:
            raise PluginError(f"no installed postprocessor decodes the head `{head}`", hint="see `plugins`")
        return found

    def find_postprocessor(self, head: str) -> Registered | None:
        """Return the postprocessor that decodes this head, or None."""
        return next((r for r in self.stages["postprocessor"].values() if head in r.stage.heads), None)

    def notify(self, hook: str, **given: Any) -> None:
        """Call a hook of every plugin that has it; a plugin that fails in it is skipped with a warning."""
        for _ in self._ask(hook, **given):
            pass

    def environment(self) -> dict[str, str]:
        """Return the environment variables that plugins want; of two for one variable, that of the first loaded."""
        wanted: dict[str, str] = {}
        for plugin, answer in self._ask("yolotrt_environment"):
            if isinstance(answer, Mapping) and all(isinstance(text, str) for pair in answer.items() for text in pair):
                wanted |= answer
            else:
                _log.warning("plugin %s is skipped: `yolotrt_environment` returned %s, not a mapping of str to str",
                             plugin, shown(answer))  # fmt: skip
        return wanted

    def _ask(self, hook: str, **given: Any) -> Iterator[tuple[str, Any]]:
        """Yield each plugin's description and its hook's result; the plugin loaded last first."""
        for impl in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            dist, _, name = impl.plugin_name.partition(":")
            plugin = f"`{name}` of `{dist}`"
            try:
                answer = impl.function(*(given[name] for name in impl.argnames))
            except YolotrtError:
                raise
            except (Exception, SystemExit) as err:  # noqa: BLE001 - a plugin's code may fail in any way
                _log.warning("plugin %s is skipped: `%s` failed: %s: %s", plugin, hook, type(err).__name__, err)
                continue
            yield plugin, answer

    def _load_one(self, source: PluginSource) -> None:
        def fail(error: str, stages: tuple[tuple[Kind, str], ...] = ()) -> None:
            self.broken.append(Broken(source.name, source.dist, source.version, error, stages))

        try:
            module = source.load()
        except (Exception, SystemExit) as err:  # noqa: BLE001 - a plugin's code may fail in any way at import
            return fail(f"import failed: {type(err).__name__}: {err}")
        version = getattr(module, "YOLOTRT_API", None)
        if version is not None and type(version) is not int:
            return fail(f"`YOLOTRT_API` should be an int, as in `YOLOTRT_API = {hookspecs.API_VERSION}`; "
                        f"it is {shown(version)}")  # fmt: skip
        if version != hookspecs.API_VERSION:
            stated = "states no plugin API version" if version is None else f"is written for plugin API {version}"
            return fail(
                f"{stated}; this version supports plugin API {hookspecs.API_VERSION} (`YOLOTRT_API = ...` in it)"
            )
        try:
            self.manager.register(module, name=f"{source.dist}:{source.name}")
        except (pluggy.PluginValidationError, ValueError) as err:
            self._forget(module)
            return fail(f"hooks do not fit: {err}".replace("\n", " "))
        unknown = [c.name for c in self.manager.get_hookcallers(module) or [] if not c.has_spec()]
        if unknown:
            self._forget(module)
            hooks = [n for n in dir(hookspecs) if n.startswith("yolotrt_")]
            return fail(f"there is no hook `{unknown[0]}`; {nearest(unknown[0], hooks)}")
        for kind in KINDS:
            try:
                stages = self._collect(kind, module)
            except (Exception, SystemExit) as err:  # noqa: BLE001 - a plugin's code may fail in any way
                fail(f"hook for kind `{kind}` failed: {type(err).__name__}: {err}")
                continue
            for stage in stages:
                self._add(kind, stage, source)
        return None

    def _forget(self, module: Any) -> None:
        if self.manager.is_registered(module):
            self.manager.unregister(module)

    def _collect(self, kind: Kind, module: Any) -> Sequence[Any]:
        plural = "passes" if kind == "pass" else f"{kind}s"
        caller = getattr(self.manager.hook, f"yolotrt_{plural}")
        found: list[Any] = []
        for impl in caller.get_hookimpls():
            if impl.plugin is module:
                found.extend(impl.function() or ())
        return found

    def _add(self, kind: Kind, stage: Any, source: PluginSource) -> None:
        declared = getattr(stage, "name", None)
        name = declared if isinstance(declared, str) else type(stage).__name__

        def fail(error: str) -> None:
            self.broken.append(Broken(source.name, source.dist, source.version, error, ((kind, name),)))

        owner = f"{kind} `{name}` of `{source.dist}`"
        try:
            with answering(owner, source.dist, "reading its attributes"):
                refuse_misdeclared(kind, stage)
                options = option_fields(stage.Options, name)
        except YolotrtError as err:
            return fail(err.message)
        if not _NAME.fullmatch(name):
            return fail(f"{kind} `{name}` needs a name of lower-case letters, digits and `_`")
        if name in RESERVED:
            return fail(f"`{name}` is a name of `{OWN_DIST}` itself, and {owner} cannot have it too")
        rivals = [named[name] for named in self.stages.values() if name in named]
        if name in self._contested:
            return fail(f"{kind} `{name}` of `{source.dist}` has a name that other distributions claim already")
        if rivals:  # flags and recipe tables are by name, whatever the kind
            return self._refuse_both(kind, name, source, rivals[0])
        taken = {f.flag: r.dist for stages in self.stages.values() for r in stages.values() for f in r.options}
        for option in options:
            if option.flag in taken or option.flag in self.reserved_flags:
                owner = taken.get(option.flag, OWN_DIST)
                return fail(f"flag `{option.flag}` is claimed by both `{owner}` and `{source.dist}`")
        guarded = Guarded(stage, owner, source.dist)
        self.stages[kind][name] = Registered(kind, guarded, source.name, source.dist, source.version, options)
        return None

    def _refuse_both(self, kind: Kind, name: str, source: PluginSource, rival: Registered) -> None:
        if kind == rival.kind:
            error = f"{kind} `{name}` is brought by both `{rival.dist}` and `{source.dist}`"
        else:
            error = (
                f"{rival.kind} `{name}` of `{rival.dist}` and {kind} `{name}` of `{source.dist}` "
                "cannot share a name: it starts their flags and names their recipe table"
            )
        if not rival.is_own:  # neither has a better claim, so neither may be taken for the other
            del self.stages[rival.kind][name]
            self._contested.add(name)
            self.broken.append(Broken(rival.plugin, rival.dist, rival.version, error, ((rival.kind, name),)))
        self.broken.append(Broken(source.name, source.dist, source.version, error, ((kind, name),)))
