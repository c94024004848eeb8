"""`build`: builds an engine from a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.cli.recipe import RecipeSettings, build_groups, build_settings
from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.files.paths import sidecar_path
from yolotrt_core.plugin.options import option, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.types import Json

if TYPE_CHECKING:
    from yolotrt_core.api import Engine


@dataclass(frozen=True, eq=False, repr=False)
class BuildOutput(RecipeSettings):
    """Output settings of `build`."""

    out: Path | None = option(
        None, common=True, metavar="DIR", default_text="./engines/NAME-PRECISION/", help="Folder for the engine"
    )
    force: bool = option(False, switch=True, help="Ignore the cache and rebuild all stages")
    json: bool = json_option("build")


def task(registry: Registry) -> Any:
    """Make the `build` task."""
    from yolotrt_core.api import build_engine

    summary = (
        "Build an engine from a YOLOv5 model; cached stages are reused.\n\n"
        "Example: build --weights yolov5n.pt --precision fp16"
    )

    def body(given: Given) -> None:
        asked = resolve_settings(BuildOutput, given)
        settings, store = build_settings(registry, given), open_store(asked.store)
        engine = build_engine(settings, store=store, registry=registry, out=asked.out, force=asked.force)
        show(json.dumps(document(engine), indent=2) if asked.json else engine.path)

    return make_task("build", summary, build_groups(registry, BuildOutput), body)


def document(engine: Engine) -> Json:
    """Return what `build --json` prints, as described in yolotrt_core/schemas/build.json."""
    return {
        "schema": 1,
        "engine": str(engine.path),
        "spec": str(sidecar_path(engine.path)),
        "key": engine.key,
        "from_cache": engine.from_cache,
        "builder": engine.spec.builder,
        "precision": engine.spec.precision,
        "tools": to_json(engine.spec.tools),
        "gate": to_json({"key": engine.gate.key, **engine.gate.facts}) if engine.gate else None,
        "mixed": to_json(engine.mixed),
        "auto": to_json({f: getattr(engine.auto, f) for f in ("text", "options")}) if engine.auto else None,
        "steps": [
            {
                "step": s.step.label,
                "kind": s.step.kind,
                "plugin": s.step.identity.name,
                "key": s.record.key,
                "from_cache": s.from_cache,
                "seconds": s.record.seconds,
                "facts": to_json(s.record.facts),
            }
            for s in engine.steps
        ],
    }
