"""Plot of the sensitivity of each layer, by matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path

from yolotrt_core.errors import ArtifactError, PluginError, os_error_reason
from yolotrt_core.tuning.sensitivity import Sensitivity

_INCHES_PER_LAYER = 0.18


def draw(found: Sensitivity, path: Path, title: str) -> None:
    """Write a bar for each layer, the worst on top, in the format of the file's suffix.

    Raises:
        PluginError: matplotlib is not installed. ArtifactError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise PluginError(
            "plotting needs matplotlib", hint="pip install 'yolotrt-core[plot]', or omit `--plot`"
        ) from err
    names = [d.layer for d in found.layers]
    figure = Figure(figsize=(9, 1.5 + _INCHES_PER_LAYER * len(names)), layout="constrained")
    errors, boxes = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    errors.barh(names, [d.error for d in found.layers], color="#336699")
    errors.invert_yaxis()
    errors.margins(y=0.01)
    errors.tick_params(axis="y", labelsize=7)
    errors.set_xlabel("relative error of the raw output")
    boxes.barh(names, [1 - d.agreement for d in found.layers], color="#cc6633")
    boxes.set_xlabel("share of unmatched boxes")
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path)
    except OSError as err:
        raise ArtifactError(f"cannot write `{path}`: {os_error_reason(err)}") from err
