"""Which exporter reads a model that several plugins may recognise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import PluginError, UsageError
from yolotrt_core.guard import shown
from yolotrt_core.types import ModelSource

if TYPE_CHECKING:
    from yolotrt_core.registry import Registered, Registry


def choose_exporter(stages: Registry, source: ModelSource, answers: Iterable[tuple[str, Any]]) -> Registered | None:
    """Return the exporter that plugins claim a source for, or None if none does.

    Which of several knows the file best cannot be told from outside, so a plugin that claims too much must not
    take the files of the built-in exporters: these win, and a warning says how to have the other one.

    Args:
        answers: each plugin, in words, and what its `yolotrt_select_exporter` returned.

    Raises:
        UsageError: several claim it and none of them is built in.
        PluginError: the only answer is no exporter's name, or one that cannot be used.
    """
    claims: dict[str, Registered] = {}
    faults: list[PluginError] = []
    for plugin, answer in answers:
        if answer is None:
            continue
        try:
            found = _named(stages, plugin, answer)
        except PluginError as err:
            faults.append(err)
            continue
        claims.setdefault(found.name, found)
    if not claims and faults:
        raise faults[0]
    for fault in faults:
        stages.warn_once(f"{fault.message}; it is passed over")
    own = [found for found in claims.values() if stages.is_own(found)]
    others = [found for found in claims.values() if found not in own]
    if others and len(claims) > 1:
        both = " and ".join(f"`{found.name}` of `{found.dist}`" for found in (*own, *others))
        if not own:
            raise UsageError(
                f"`{source.path}` is claimed by several exporters: {both}",
                hint="name the right one with `--exporter NAME`",
            )
        stages.warn_once(
            f"`{source.path}` is claimed by the exporters {both}: the built-in `{own[0].name}` reads it, "
            f"`--exporter {others[0].name}` names the other"
        )
    return next(iter((*own, *others)), None)


def _named(stages: Registry, plugin: str, answer: Any) -> Registered:
    """Return the exporter that a plugin's `yolotrt_select_exporter` named."""
    told = f"plugin {plugin} chose {shown(answer)} in `yolotrt_select_exporter`"
    if not isinstance(answer, str):
        raise PluginError(f"{told}; the name of an exporter or None is expected")
    try:
        return stages.get("exporter", answer)
    except PluginError as err:
        raise PluginError(f"{told}: {err.message}", hint=err.hint) from err
