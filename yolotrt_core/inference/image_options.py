"""Options of how images are read."""

from __future__ import annotations

from dataclasses import dataclass

from yolotrt_core.media.images import FULL_DEPTH
from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images are read, by every command and for calibration."""

    bits: int = option(
        FULL_DEPTH,
        minimum=9,
        maximum=FULL_DEPTH,
        help="Bits that the values in 16-bit image files have, for example 12",
    )
