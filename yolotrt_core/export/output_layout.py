"""Detection of the row layout of YOLOv5 outputs from their values.

The project's layout is (B, N, 5 + C) with cx, cy, w, h in input pixels and rows ordered by level
(finest first), anchor, y, x. TensorFlow exports use normalized boxes and adjacent anchors of a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Order = Literal["anchor", "cell"]
Units = Literal["pixels", "normalised"]

_STRIDES = (4, 8, 16, 32, 64, 128)
_MAX_ANCHORS = 12
_SCORE_SLACK = 0.01
_MOST_KEPT = 1000  # boxes after NMS


@dataclass(frozen=True, slots=True)
class Rows:
    """Row layout of an output.

    Attributes:
        strides: pixels per cell of each level, in the order of the rows.
        anchors: boxes per cell.
        order: within a level, `anchor` is anchor, y, x; `cell` is y, x, anchor.
        units: `pixels` of the input, or `normalised` by its width and height.
    """

    strides: tuple[int, ...]
    anchors: int
    order: Order
    units: Units

    def permutation(self, height: int, width: int) -> NDArray[np.int64] | None:
        """Return the index in this layout of each row of the project's layout; None if they are equal."""
        import numpy as np

        parts, first = {}, 0
        for stride in self.strides:
            shape = (height // stride, width // stride)
            index = first + np.arange(self.anchors * shape[0] * shape[1])
            first += len(index)
            if self.order == "cell":
                index = index.reshape(*shape, self.anchors).transpose(2, 0, 1).ravel()
            parts[stride] = index
        moved = np.concatenate([parts[stride] for stride in sorted(parts)])
        return None if np.array_equal(moved, np.arange(first)) else moved

    def scale(self, height: int, width: int) -> tuple[float, float, float, float] | None:
        """Return the factors from cx, cy, w, h to pixels; None if they are pixels."""
        return None if self.units == "pixels" else (width, height, width, height)

    def to_project(self, output: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
        """Convert an output (B, N, 5 + C) from this layout to the project's."""
        import numpy as np

        moved = self.permutation(height, width)
        rows = np.array(output if moved is None else output[:, moved], dtype=np.float32)
        scale = self.scale(height, width)
        if scale is not None:
            rows[..., :4] *= np.array(scale, dtype=np.float32)
        return rows


@dataclass(frozen=True, slots=True)
class Known:
    """Declared properties of a layout; None means unknown."""

    strides: tuple[int, ...] | None = None
    order: Order | None = None
    units: Units | None = None


def find_rows(output: NDArray[Any], size: tuple[int, int], known: Known = Known(), slack: float = 0.02) -> Rows:
    """Find the row layout of a network's output for any image, and check its scores.

    YOLOv5 box centers are -0.5 to 1.5 cells from their cell's corner, which holds for all rows in the correct layout
    only.

    Args:
        output: float (B, N, 5 + C). size: (height, width) of the input in pixels.
        slack: tolerance of the centers in cells; quantized networks need about 1.

    Raises:
        UsageError: the rows are not YOLOv5's, or not in the declared layout, or there are columns that are not scores.
    """
    rows = locate_boxes(output, size, known, slack)
    outside = not_scores(output, slack)
    if outside:
        raise UsageError(
            f"the output has {output.shape[2]} columns, but {score_ranges(output, outside)}",
            hint="segmentation, face, pose and rotated-box models are not supported; export a detection model",
        )
    return rows


def not_scores(output: NDArray[Any], slack: float = 0.02) -> list[int]:
    """Return the columns after the box, (B, N, 5 + C), with values outside 0..1: they are neither objectness nor class.

    Args:
        slack: as for `find_rows`; a tenth of it is the tolerance of the scores.
    """
    import numpy as np

    tolerance = max(_SCORE_SLACK, slack / 10)
    low, high = output[..., 4:].min(axis=(0, 1)), output[..., 4:].max(axis=(0, 1))
    return [int(index) + 4 for index in np.flatnonzero((low < -tolerance) | (high > 1 + tolerance))]


def score_ranges(output: NDArray[Any], columns: Sequence[int]) -> str:
    """Describe columns whose values are not scores."""
    values = output[..., list(columns)]
    first, last = columns[0], columns[-1]
    if len(columns) == 1:
        which = f"column {first} is"
    elif last - first + 1 == len(columns):
        which = f"columns {first} to {last} are"
    else:
        which = f"{len(columns)} of columns {first} to {last} are"
    kind = "neither objectness nor class scores" if first == 4 else "not class scores"
    return f"{which} {kind}: values from {values.min():.3g} to {values.max():.3g}, expected 0 to 1"


def locate_boxes(output: NDArray[Any], size: tuple[int, int], known: Known = Known(), slack: float = 0.02) -> Rows:
    """Find the row layout by the boxes alone, the first four columns; arguments as for `find_rows`.

    Raises:
        UsageError: the boxes are not YOLOv5's, or not in the declared layout.

    Source:
        ultralytics/yolov5 v7.0, models/yolo.py and models/tf.py, Detect and TFDetect.
    """
    import numpy as np

    if output.ndim != 3 or output.shape[2] < 6:
        raise UsageError(f"expected a YOLOv5 output (batch, rows, 5 + classes), found shape {tuple(output.shape)}")
    if not np.isfinite(output).all():
        raise UsageError("the model's output has values that are not finite")
    rows = output.shape[1]
    for strides, anchors in _levels(rows, size, known.strides):
        for order, units in itertools.product(
            (known.order,) if known.order else ("anchor", "cell"),
            (known.units,) if known.units else ("pixels", "normalised"),
        ):
            candidate = Rows(strides, anchors, order, units)
            if _fits(output, candidate, size, slack):
                return candidate
    declared = [f"{k} {v}" for k, v in (("strides", known.strides), ("rows", known.order), ("units", known.units)) if v]
    raise UsageError(
        f"the {rows} output rows do not match YOLOv5 boxes for an input of {size[0]}x{size[1]}"
        + (f" with {', '.join(declared)}" if declared else " in any known order, units and strides"),
        hint=_what_to_export(output, slack),
    )


def _what_to_export(output: NDArray[Any], slack: float) -> str:
    """Return the hint for rows that are not YOLOv5's."""
    expected = "all boxes of YOLOv5's Detect layer, decoded: cx, cy, w, h, objectness and class scores each"
    rows, columns = output.shape[1:]
    if rows <= _MOST_KEPT and (columns in (6, 7) or rows % 100 == 0):  # as many as NMS keeps
        return f"these may be finished detections: export the model without NMS; expected {expected}"
    if output.shape[2] == 6 and (output[..., 2:4] >= output[..., :2]).all():
        return f"these may be corners, a score and a class (x1, y1, x2, y2, score, class); expected {expected}"
    if 4 in not_scores(output, slack):
        return f"the values are not decoded: export the model with the Detect layer's decoding; expected {expected}"
    return f"expected {expected}"


def _levels(rows: int, size: tuple[int, int], known: Sequence[int] | None) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield strides and anchors that result in this number of rows; YOLOv5's default first."""
    runs = [_STRIDES[a:b] for a, b in itertools.combinations(range(len(_STRIDES) + 1), 2)]
    runs.sort(key=lambda run: run != (8, 16, 32))
    for run in [tuple(known)] if known else [*runs, *(run[::-1] for run in runs if len(run) > 1)]:
        if any(side % stride for side in size for stride in run):
            continue
        anchors, rest = divmod(rows, sum((size[0] // stride) * (size[1] // stride) for stride in run))
        if not rest and 1 <= anchors <= _MAX_ANCHORS:
            yield run, anchors


def _fits(output: NDArray[Any], layout: Rows, size: tuple[int, int], slack: float) -> bool:
    import numpy as np

    boxes = layout.to_project(output[..., :4], *size)
    first = 0
    for stride in sorted(layout.strides):
        cells = (size[0] // stride, size[1] // stride)
        count = layout.anchors * cells[0] * cells[1]
        level = boxes[:, first : first + count].reshape(-1, layout.anchors, *cells, 4) / stride
        first += count
        y, x = np.mgrid[: cells[0], : cells[1]]
        for place, corner in ((level[..., 0], x), (level[..., 1], y)):
            offset = place - corner
            if offset.min() < -0.5 - slack or offset.max() > 1.5 + slack:
                return False
        if level[..., 2:].min() < -slack:
            return False
    return True
