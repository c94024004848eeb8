"""Masks of many images as run lengths: in memory and in files of predictions.

At evaluation's thresholds an image has hundreds of masks; their run lengths take a quarter of the packed bitmaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yolotrt_core.inference.masks import run_lengths
from yolotrt_core.types import Masks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class StoredMasks:
    """Masks of one image as COCO's uncompressed run lengths.

    Attributes:
        size: (height, width) of the image in pixels.
        runs: int32, the run lengths of all masks one after the other, each beginning with a run of 0.
        counts: int64 (M,), the number of runs of each mask.
    """

    size: tuple[int, int]
    runs: NDArray[np.int32]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, masks: Masks) -> StoredMasks:
        """Return the run lengths of masks."""
        import numpy as np

        runs = [np.array(run_lengths(masks, index), np.int32) for index in range(len(masks))]
        joined = np.concatenate([np.zeros(0, np.int32), *runs])
        return cls(masks.size, joined, np.array([len(each) for each in runs], np.int64))

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        """Yield the run lengths of each mask."""
        end = 0
        for count in self.counts.tolist():
            end += count
            yield self.runs[end - count : end]

    def unpacked(self) -> Masks:
        """Return the masks as bitmaps, each in the smallest window."""
        import numpy as np

        height = self.size[0]
        windows, packed = [], []
        for runs in self:
            edges = np.cumsum(runs)
            x1, x2 = (0, 0) if len(runs) < 2 else (int(edges[0]) // height, (int(edges[1::2][-1]) - 1) // height + 1)
            own = np.clip(edges, x1 * height, x2 * height)
            lengths = np.diff(own, prepend=x1 * height)
            columns = np.repeat(np.arange(len(runs)) % 2 == 1, lengths).reshape(x2 - x1, height)
            rows = np.flatnonzero(columns.any(0))
            y1, y2 = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
            windows.append((x1, y1, x2, y2))
            packed.append(np.packbits(columns[:, y1:y2].T, axis=1))
        return Masks(self.size, np.array(windows, np.int32).reshape(-1, 4), tuple(packed))


def masks_to_arrays(stored: Sequence[StoredMasks | None]) -> dict[str, NDArray[Any]]:
    """Return the masks of all images as arrays, `runs` and `run_counts`; nothing of a model without."""
    import numpy as np

    masks = [each for each in stored if each is not None]
    if not masks:
        return {}
    return {
        "runs": np.concatenate([each.runs for each in masks]),
        "run_counts": np.concatenate([each.counts for each in masks]),
    }


def masks_from_arrays(
    arrays: Mapping[str, Any], counts: Sequence[int], sizes: Sequence[Sequence[int]]
) -> Iterator[StoredMasks | None]:
    """Yield the masks of each image; None of each for a model without.

    Args:
        arrays: as `masks_to_arrays` returned. counts: objects of each image. sizes: its (height, width).
    """
    if "runs" not in arrays:
        yield from [None] * len(counts)
        return
    runs, run_counts = arrays["runs"], arrays["run_counts"]
    place = begin = 0
    for count, (height, width) in zip(counts, sizes, strict=True):
        own = run_counts[place : place + count]
        place += count
        end = begin + int(own.sum())
        yield StoredMasks((height, width), runs[begin:end], own)
        begin = end
