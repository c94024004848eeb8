"""The columns of YOLOv5's rows: how many are class scores, which are mask coefficients, and what others are."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.class_names import labels_from_file, labels_in_order, numbered_labels
from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_core.export.output_layout import not_scores, score_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from yolotrt_onnx.options import OnnxSourceOptions

log = logging.getLogger(__name__)

NAMES_HINT = "pass the class names with `--onnx-names FILE`, one per line"
DETECT_HINT = "export the model with the Detect layer: `export.py --include onnx` of YOLOv5 v6.0 or later"
_MASKS, _ANGLES = 32, 180  # mask coefficients of segmentation models, classes of the angle of rotated boxes
# Columns besides 5 + classes of models with one class: landmarks of faces with and without a score each, key points.
_ONE_CLASS = {10: "face landmarks", 15: "face landmarks", 51: "key points"}
_TASKS = {"segment": "segmentation", "pose": "pose", "obb": "rotated-box", "classify": "classification"}
_MOST_ROTATED = 20  # classes of rotated-box data sets
_FOLLOWS = 0.95  # correlation with the centre of the box


@dataclass(frozen=True, slots=True)
class Classes:
    """What a file and the options say about the classes.

    Attributes:
        names: class names; empty if unknown. where: their source. count: number of classes; None if unknown.
        indices: columns of box, objectness and classes as declared; None without a declaration.
        metadata: of the file. file: its name.
    """

    names: tuple[str, ...]
    where: str
    count: int | None
    indices: tuple[int, ...] | None
    metadata: Mapping[str, str]
    file: str

    @property
    def task(self) -> str:
        """Task in the metadata, or an empty text."""
        return self.metadata.get("task", "")

    @property
    def width(self) -> int | None:
        """Number of columns of a row if it has no further ones; None if unknown."""
        return None if self.count is None or self.indices is not None else 5 + self.count


def read_classes(model: ModelProto, path: Path, options: OnnxSourceOptions) -> Classes:
    """Return what options and metadata say about the classes.

    Raises:
        UsageError: invalid options.
    """
    metadata = {each.key: each.value for each in model.metadata_props}
    if options.names is not None:
        names, where = labels_from_file(options.names), f"`{options.names}`"
    else:
        names, where = labels_in_order(literal(metadata.get("names"))) or (), f"the metadata of `{path.name}`"
    indices = None if options.columns is None else parse_columns(options.columns)
    count = literal(metadata.get("nc"))
    if names:
        count = len(names)
    elif indices is not None:
        count = len(indices) - 5
    elif not isinstance(count, int) or isinstance(count, bool) or count < 1:
        count = None
    return Classes(names, where, count, indices, metadata, path.name)


def parse_columns(text: str) -> tuple[int, ...]:
    """Parse the value of `--onnx-columns` to the columns of box, objectness and classes.

    Args:
        text: groups from left to right, such as box=4,objectness=1,skip=10,classes=1; without box and objectness
            these come first.

    Raises:
        UsageError: it is invalid.
    """
    refusal = UsageError(
        f"`--onnx-columns` expects groups of columns from left to right, such as classes=80 or "
        f"box=4,objectness=1,skip=10,classes=1, found `{text}`"
    )
    groups = [part.split("=") for part in text.replace(" ", "").split(",")]
    if not all(len(group) == 2 and re.fullmatch(r"[1-9]\d{0,3}", group[1]) for group in groups) or len(groups) > 32:
        raise refusal
    if not {"box", "objectness"}.intersection(group[0] for group in groups):
        groups = [["box", "4"], ["objectness", "1"], *groups]
    places: dict[str, range] = {}
    first = 0
    for name, count in groups:
        here = range(first, first + int(count))
        first = here.stop
        if name == "skip":
            continue
        if name in places or name not in ("box", "objectness", "classes"):
            raise refusal
        places[name] = here
    if len(places) != 3 or len(places["box"]) != 4 or len(places["objectness"]) != 1:
        raise refusal
    return (*places["box"], *places["objectness"], *places["classes"])


def declared_columns(answer: NDArray[Any], classes: Classes) -> NDArray[Any]:
    """Return the declared columns of an output (B, N, columns); all without a declaration.

    Raises:
        UsageError: it has fewer.
    """
    if classes.indices is None:
        return answer
    if max(classes.indices) >= answer.shape[2]:
        raise UsageError(
            f"`--onnx-columns` names {max(classes.indices) + 1} columns, but the output has {answer.shape[2]}"
        )
    return answer[..., list(classes.indices)]


@dataclass(frozen=True, slots=True)
class Masks:
    """Mask coefficients after the class scores: their number, and the output with the prototypes, (B, count, h, w)."""

    count: int
    prototypes: str


def find_masks(
    answer: NDArray[Any], classes: Classes, others: Mapping[str, NDArray[Any]], size: tuple[int, int], slack: float
) -> Masks | None:
    """Return the masks of a segmentation model of YOLOv5; None for other models, and where it is ambiguous.

    Args:
        answer: float (B, N, columns). others: the model's other float outputs. size: (height, width) of the input.
        slack: as for `find_rows`.
    """
    if classes.indices is not None or classes.task not in ("", "segment"):
        return None
    maps = {name: each.shape for name, each in others.items() if each.ndim == 4}
    fitting = [name for name, (_, _, h, w) in maps.items() if h * size[1] == w * size[0] and size[0] % h == 0]
    if len(maps) != 1 or not fitting:
        return None
    count = maps[fitting[0]][1]
    number = answer.shape[2] - 5 - count
    is_known = number == classes.count or (classes.count is None and (count == _MASKS or classes.task == "segment"))
    if number < 1 or not is_known or not_scores(answer[..., : 5 + number], slack):
        return None
    return Masks(count, fitting[0])


def check_columns(
    answer: NDArray[Any], classes: Classes, others: Mapping[str, NDArray[Any]], slack: float, is_raw: bool
) -> tuple[str, ...]:
    """Return a label for each class column, after checks that they are classes.

    Args:
        answer: float (B, N, 5 + C), the declared columns. others: the model's other float outputs.
        slack: as for `find_rows`. is_raw: the head is decoded here, which maps all columns to 0..1.

    Raises:
        UsageError: the columns are not 5 + classes, or this is ambiguous; names what they may be.
    """
    columns = answer.shape[2]
    count = columns - 5
    outside = not_scores(answer, slack)
    if outside == [columns - 1] and (answer[..., -1] == answer[..., -1].astype(np.int64)).all():
        raise UsageError(
            f"the last of {columns} columns has whole numbers from {answer[..., -1].min():g} to "
            f"{answer[..., -1].max():g}, as the index of a class; expected a score for each class",
            hint=DETECT_HINT,
        )
    if classes.indices is None:
        following = [] if is_raw or outside or classes.count is not None else _following(answer)
        if following:
            raise UsageError(
                f"the output has {columns} columns: {len(following)} of columns {following[0]} to {following[-1]} "
                "follow the centre of the box, as landmarks and key points do: they are not class scores",
                hint=_columns_hint(_guess(columns, classes, following, 0)),
            )
        masks = _masks(others, columns, classes.count)
        kind = _kind(columns, classes, masks, bool(outside), is_raw)
        if kind is not None:
            raise _further_columns(answer, classes, kind, outside, masks)
    if outside:
        raise UsageError(score_ranges(answer, outside), hint=_columns_hint(_guess(columns, classes, outside, 0)))
    if classes.count is not None and classes.count != count:
        found = "the file has" if classes.indices is None else "`--onnx-columns` declares"
        has = "has names for" if classes.names else "counts"
        raise UsageError(
            f"{found} {counted(count, 'class')}, but {classes.where} {has} {classes.count}",
            hint=f"{NAMES_HINT}, or the number of class columns with `--onnx-columns classes=N`",
        )
    if not classes.names:
        log.warning("the file has no names for its %s: numbering them; %s", counted(count, "class"), NAMES_HINT)
    return classes.names or numbered_labels(count)


def _following(answer: NDArray[Any]) -> list[int]:
    """Return the columns after the objectness that change with the centre of the box, (B, N, columns)."""
    rows = answer.reshape(-1, answer.shape[2]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    norms = np.sqrt((rows * rows).sum(axis=0))
    products = rows[:, :2].T @ rows[:, 5:]
    limits = _FOLLOWS * np.outer(norms[:2], norms[5:])
    return [int(index) + 5 for index in np.flatnonzero(((products > limits) & (limits > 0)).any(axis=0))]


def _masks(others: Mapping[str, NDArray[Any]], columns: int, count: int | None) -> int:
    """Return the number of mask coefficients: the channels of mask prototypes, a second output; 0 without one."""
    shapes = [output.shape for output in others.values() if output.ndim == 4]
    maps = [shape for shape in shapes if shape[1] % columns == 0 or shape[3] % columns == 0]
    channels = [size for shape in shapes if shape not in maps for size in (shape[1], shape[3])]
    likely = [each for each in channels if each == _MASKS or (count is not None and columns == 5 + count + each)]
    return likely[0] if likely else 0


def _kind(columns: int, classes: Classes, masks: int, is_outside: bool, is_raw: bool) -> str | None:
    """Return the kind of columns that the model has besides 5 + classes; None if there are none."""
    task = _TASKS.get(classes.task)
    if task is not None:
        return f"the file's metadata names the task {task}"
    count = columns - 5
    if masks and (count != classes.count or is_outside):
        return "its second output looks like the mask prototypes of a segmentation model"
    if classes.count is None:
        if is_outside:
            return "the model has further outputs per box"
        is_usual = count <= _MASKS and count not in _ONE_CLASS
        if 0 < count - _ANGLES <= _MOST_ROTATED:
            return f"they may be {count - _ANGLES} classes and {_ANGLES} of an angle (rotated boxes)"
        if is_raw and not is_usual and count != 80:
            return "whether all are classes does not show before the decoding"
        return None
    extra = count - classes.count
    if extra == -1:
        return "this is the layout of YOLOv8 and later, without objectness"
    if extra == _MASKS:
        return "the others look like the mask coefficients of a segmentation model"
    if extra == _ANGLES:
        return "the others look like the angles of rotated boxes"
    if classes.count == 1 and extra in _ONE_CLASS:
        return f"the others look like {_ONE_CLASS[extra]}"
    if extra > 0 and extra % 3 == 0 and is_outside:
        return "the others look like key points"
    return "the others are not class scores" if extra > 0 and is_outside else None


def _further_columns(answer: NDArray[Any], classes: Classes, kind: str, outside: list[int], masks: int) -> UsageError:
    columns = answer.shape[2]
    found = f"the output has {columns} columns"
    if classes.count is not None:
        found += f", expected 5 + {classes.count} classes"
    text = f"{found}: {kind}"
    if outside and classes.count is None:
        text += f" ({score_ranges(answer, outside)})"
    if classes.count is not None and classes.count + 4 == columns:
        return UsageError(text, hint="if a postprocessor plugin decodes it, pass its head: `--onnx-head NAME`")
    hint = _columns_hint(_guess(columns, classes, outside, masks))
    if classes.count is None and not outside and not masks:
        hint = f"if all are classes, pass `--onnx-columns classes={columns - 5}` or their names; otherwise {hint}"
    return UsageError(text, hint=hint)


def _guess(columns: int, classes: Classes, outside: list[int], masks: int) -> str:
    """Return the value of `--onnx-columns` that is likely right."""
    if outside and outside[0] == 5 and outside[-1] < columns - 1:
        return f"skip={outside[-1] - 4},classes={columns - 1 - outside[-1]}"
    if classes.count == 1 and columns == 16:  # face models have the class last
        return "skip=10,classes=1"
    if classes.count is not None and 5 + classes.count < columns:
        return f"classes={classes.count}"
    if outside and outside[0] > 5:
        return f"classes={outside[0] - 5}"
    known = masks or (_ANGLES if columns - 5 > _ANGLES else 0)
    return f"classes={columns - 5 - known}" if known and columns - 5 > known else "classes=N"


def _columns_hint(guess: str) -> str:
    return (
        "export a detection model, or a segmentation model with both outputs, or use this one's boxes alone with "
        "`--onnx-columns`, "
        f"which names the columns from left to right after box and objectness, here probably `{guess}`"
    )
