"""`sensitivity`: error of quantizing each layer of a model alone, worst first."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.cli.recipe import RecipeSettings, build_groups, build_settings
from yolotrt_core.cli.stdio import can_show, show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.console.text import counted
from yolotrt_core.errors import UsageError
from yolotrt_core.pipeline.build_options import AUTO, resolve
from yolotrt_core.plugin.options import option, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.types import Json, Precision

if TYPE_CHECKING:
    from yolotrt_core.tuning.sensitivity import Sensitivity

_BAR = 24
_SUGGESTED = 4


@dataclass(frozen=True, eq=False, repr=False)
class SensitivitySettings(RecipeSettings):
    """Output settings of `sensitivity`."""

    plot: Path | None = option(
        None, common=True, default_text="none", help="Plot of the errors, .svg, .png or .pdf; needs matplotlib"
    )
    json: bool = json_option("sensitivity")


def task(registry: Registry) -> Any:
    """Make the `sensitivity` task."""
    summary = (
        "Rank the layers of a model by the error of quantizing each alone, worst first.\n\n"
        "Each layer is measured in a float32 network on a few of the calibration images. "
        "The precision is int8 unless fp8 is given.\n\n"
        "Example: sensitivity --weights yolov5n.pt --calib-data train/"
    )
    groups = build_groups(registry, SensitivitySettings)
    return make_task("sensitivity", summary, groups, lambda given: _sensitivity(registry, given))


def _sensitivity(registry: Registry, given: Given) -> None:
    from yolotrt_core.pipeline.plan import plan_build
    from yolotrt_core.tuning.sensitivity import measure

    settings, asked = build_settings(registry, given), resolve_settings(SensitivitySettings, given)
    precision: Precision = settings.precision if settings.precision not in (None, AUTO) else "int8"
    settings = replace(settings, precision=precision)
    plot = asked.plot
    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise UsageError(f"`--plot` expects a file with the suffix .svg, .png or .pdf, found `{plot.name}`")
    usual = registry.default_calibrator(precision)
    if usual is not None and settings.calib_data is None and settings.calibrator is None:
        raise UsageError(
            f"calibrator `{usual.name}` needs images, but `--calib-data` was not given", hint="pass `--calib-data DIR`"
        )
    store = open_store(asked.store)
    planned = plan_build(resolve(settings, registry), registry)
    found = measure(planned, store=store, registry=registry)
    if asked.json:
        show(json.dumps(document(found), indent=2))
    else:
        _report(found)
    if plot is not None:  # last, so that a failure to plot loses no figures
        _draw(found, plot, planned.resolved.source.name)


def document(found: Sensitivity) -> Json:
    """Return what `sensitivity --json` prints, as described in yolotrt_core/schemas/sensitivity.json."""
    return {
        "schema": 1,
        "precision": found.precision,
        "pictures": found.images,
        "from_cache": found.from_cache,
        "seconds": sum(d.seconds for d in found.layers),
        "layers": to_json(found.layers),
    }


def _report(found: Sensitivity) -> None:
    most = max(d.error for d in found.layers) or 1.0
    block = "█" if can_show("█") else "#"
    rows = [
        (
            str(rank),
            d.layer,
            f"{d.error:.5f}",
            block * max(1, round(_BAR * d.error / most)),
            f"{d.agreement:.3f}",
            f"{d.drift:.4f}",
        )
        for rank, d in enumerate(found.layers, 1)
    ]
    print_table(("", "layer", "output error", "", "boxes in common", "score drift"), rows)
    worst = ",".join(d.layer for d in found.layers[:_SUGGESTED])
    show(f"\n{len(found.layers)} layers, each alone in {found.precision}, on {counted(found.images, 'image')}")
    show(f"keep the worst in fp16 with --{found.precision}-keep {worst}")
    show("or let a build find how many are needed: --max-drop 0.002 with labelled --eval-data")


def _draw(found: Sensitivity, path: Path, model: str) -> None:
    from yolotrt_core.tuning.sensitivity_plot import draw

    draw(found, path, f"{model}: each layer alone in {found.precision}, {counted(found.images, 'image')}")
