"""Every extension point of yolotrt. A plugin is a module in the entry-point group `yolotrt`.

A hook returns stage objects (see `yolotrt_core.plugin.stages`); no work is ever done in a hook, because
a stage's cache key must be known before it runs. A plugin states `YOLOTRT_API = 1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

from yolotrt_core.plugin.claims import Claim as Claim
from yolotrt_core.plugin.stages import Builder, Calibrator, Exporter, Pass, Postprocessor
from yolotrt_core.types import ModelSource

if TYPE_CHECKING:
    from yolotrt_core.store.action import Action, Record

PROJECT = "yolotrt"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def yolotrt_exporters() -> Sequence[Exporter]:  # type: ignore[empty-body]
    """Return the exporters this plugin brings (framework model -> ONNX)."""


@hookspec
def yolotrt_passes() -> Sequence[Pass]:  # type: ignore[empty-body]
    """Return the passes this plugin brings (ONNX -> ONNX)."""


@hookspec
def yolotrt_calibrators() -> Sequence[Calibrator]:  # type: ignore[empty-body]
    """Return the calibrators this plugin brings (images -> ranges)."""


@hookspec
def yolotrt_builders() -> Sequence[Builder]:  # type: ignore[empty-body]
    """Return the builders this plugin brings (ONNX -> engine -> session)."""


@hookspec
def yolotrt_postprocessors() -> Sequence[Postprocessor]:  # type: ignore[empty-body]
    """Return the postprocessors this plugin brings (raw output -> boxes)."""


@hookspec
def yolotrt_select_exporter(source: ModelSource) -> str | Claim | None:
    """Return the name of the exporter for this source, or None if it is not this plugin's.

    Decide by a few bytes of the file (or by a folder's contents), never by its name alone. Every plugin's hook
    is called. A built-in exporter wins a source that a plugin claims by its name alone; a plugin that recognises more
    than the format returns a `Claim` with the reason, which wins over a built-in exporter's plain name. Either way a
    warning names both. A source that two other plugins claim alike needs `--exporter NAME`.
    """


@hookspec
def yolotrt_environment() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return environment variables that the command line sets, where unset, before any framework is imported.

    For what a framework reads only when it is imported. A program that uses yolotrt as a library keeps its environment:
    a stage must work without these, and such a program sets them itself if it wants them.
    """


@hookspec
def yolotrt_stage_started(action: Action) -> None:
    """Called before a stage runs; not called when its artifact was found."""


@hookspec
def yolotrt_stage_finished(action: Action, record: Record, from_cache: bool, seconds: float) -> None:
    """Called after a stage ran or its artifact was found."""
