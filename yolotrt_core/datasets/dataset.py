"""Data sets: labeled images in a fixed order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.segmentation import Segmentation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImage:
    """An image with its ground-truth boxes.

    Attributes:
        path: the file. name: unique in the data set, machine-independent.
        boxes: float64 (M, 4): normalized cx, cy, w, h, or x, y, w, h with `in_pixels`.
        class_ids: int64 (M,); for classification the one class of the image, without a box.
        crowd: bool (M,): regions to ignore.
        labeled: whether there is a label file, which may be empty.
        masks: one per box, None of an object without; empty if none has one, or if they were not read.
    """

    path: Path
    name: str
    boxes: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    in_pixels: bool = False
    labeled: bool = True
    masks: tuple[Segmentation | None, ...] = ()

    def xywh(self, height: int, width: int) -> NDArray[np.float64]:
        """Return x, y (top left), w, h in pixels of an image of this size."""
        import numpy as np

        if self.in_pixels or not len(self.boxes):
            return self.boxes
        size = np.array([width, height, width, height], np.float64)
        scaled = self.boxes * size
        scaled[:, :2] -= scaled[:, 2:] / 2
        return scaled


@dataclass(frozen=True, slots=True)
class DataSet:
    """Images in a fixed order, with boxes of the model's classes.

    Attributes:
        path: of the data set. labels: its own class names, if any (placeholders if only the number is known).
    """

    path: Path
    images: tuple[LabeledImage, ...]
    labels: tuple[str, ...] = ()

    @property
    def boxes(self) -> int:
        return sum(len(p.class_ids) for p in self.images)

    @property
    def has_masks(self) -> bool:
        return any(p.masks for p in self.images)

    @property
    def backgrounds(self) -> int:
        """Number of images without boxes."""
        return sum(not len(p.class_ids) for p in self.images)

    @property
    def unlabeled(self) -> int:
        """Number of images without a label file, counted as backgrounds."""
        return sum(not p.labeled for p in self.images)

    @property
    def backgrounds_text(self) -> str:
        """Number of images without objects, as text."""
        missing = f", {self.unlabeled} of them without a label file" if self.unlabeled else ""
        return f"{counted(self.backgrounds, 'image')} without objects{missing}"

    @property
    def digest(self) -> str:
        """SHA-256 of all labels in order, without the images."""
        digest = hashlib.sha256()
        for p in self.images:
            digest.update(f"{len(p.class_ids)} {p.in_pixels}\n".encode())
            for values in (p.boxes, p.class_ids, p.crowd):
                digest.update(values.tobytes())
            for mask in p.masks:
                digest.update(b"mask" if mask is None else mask.key_material)
        return digest.hexdigest()
