"""Options of the sensitivity analysis and of the mixed-precision search."""

from __future__ import annotations

from dataclasses import dataclass

from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """Options of the sensitivity measurement and the mixed-precision search."""

    images: int = option(8, help="Calibration images each layer is measured on", minimum=1)
    search: bool = option(
        True,
        help="Mixed-precision search if an int8 or fp8 engine fails --max-drop: sensitive layers stay in fp16",
    )
