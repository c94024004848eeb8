"""Fixed input of the parity check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolotrt_core.types import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def reference_images(
    batch: int, height: int, width: int, layout: Layout = "nchw", channels: int = 3
) -> NDArray[np.float32]:
    """Generate deterministic images with coarse and fine structure.

    Returns:
        float32 (batch, channels, height, width) or (batch, height, width, channels) in 0..1; all images differ.
    """
    import numpy as np

    random = np.random.default_rng(5)
    images = np.zeros((batch, channels, height, width), dtype=np.float32)
    # Blocks from a quarter of the image to single pixels; coarse ones dominate, as in photographs.
    for level, weight in ((4, 0.45), (16, 0.3), (64, 0.15), (max(height, width), 0.1)):
        rows, columns = np.arange(height) * level // max(height, level), np.arange(width) * level // max(width, level)
        blocks = random.random((batch, channels, level, level), dtype=np.float32)
        images += np.float32(weight) * blocks[:, :, rows[:, None], columns]
    np.clip(images, 0, 1, out=images)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if layout == "nhwc" else images
