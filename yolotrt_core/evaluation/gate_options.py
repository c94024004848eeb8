"""Options of the accuracy gate."""

from __future__ import annotations

from dataclasses import dataclass

from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class GateOptions:
    """Limits of the accuracy gate."""

    check: bool = option(True, help="Validate reduced-precision engines against the fp32 model")
    agreement: float = option(
        0.8, help="Minimum share of matching boxes, or of images with the same best class", minimum=0.0, maximum=1.0
    )
    drift: float = option(0.1, help="Maximum mean score difference of what matches", minimum=0.0, maximum=1.0)
    images: int = option(32, help="Maximum number of images to compare without labels", minimum=1)
