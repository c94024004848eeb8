"""Calibrators: activation ranges, measured on images or imported."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_calibrators.stages import Entropy, Import, MinMax, Mse, Percentile
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Calibrator

YOLOTRT_API = 1


@hookimpl
def yolotrt_calibrators() -> Sequence[Calibrator]:
    """Return the calibrators `minmax`, `entropy`, `percentile`, `mse` and `import`."""
    return (MinMax(), Entropy(), Percentile(), Mse(), Import())
