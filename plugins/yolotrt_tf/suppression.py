"""Recognition of TensorFlow models that end with non-maximum suppression (upstream's `export.py --nms`)."""

from __future__ import annotations

from typing import Any

from yolotrt_core.console.text import printable
from yolotrt_core.errors import UsageError

# Builtin operators of TensorFlow Lite: NON_MAX_SUPPRESSION_V4 and V5.
_LITE_SUPPRESSION = {120: "NON_MAX_SUPPRESSION_V4", 121: "NON_MAX_SUPPRESSION_V5"}


def refuse_suppression(graph: Any) -> None:
    """Refuse a GraphDef with non-maximum suppression, in the graph or a function of its library.

    Raises:
        UsageError: names the operator and its node.
    """
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            if is_suppression(node.op):
                raise suppressed(node.op, f", node `{printable(node.name[:80])}`")
    for function in graph.library.function:  # `tf.image.non_max_suppression_padded` consists of loops
        name = function.attr["_implements"].s.decode(errors="replace") if "_implements" in function.attr else ""
        if name.startswith("non_max_suppression"):
            raise suppressed(name, "")


def refuse_lite_suppression(builtin: int, custom: bytes | None) -> None:
    """Refuse an operator of TensorFlow Lite that selects boxes.

    Args:
        builtin: its code. custom: its name if it is a custom operator.

    Raises:
        UsageError: it is non-maximum suppression.
    """
    name = (custom or b"").decode(errors="replace") or _LITE_SUPPRESSION.get(builtin, "")
    if is_suppression(name) or name in _LITE_SUPPRESSION.values():
        raise suppressed(name, "")


def is_suppression(operator: str) -> bool:
    """Check an operator's name, such as `CombinedNonMaxSuppression` or `FlexNonMaxSuppressionV5`."""
    return "NonMaxSuppression" in operator or operator == "TFLite_Detection_PostProcess"


def suppressed(operator: str, where: str) -> UsageError:
    """Return the error for a model that selects boxes itself."""
    return UsageError(
        f"the model ends with non-maximum suppression (`{printable(operator[:80])}`{where}); expected all boxes of "
        "YOLOv5's head",
        hint="export it again without `--nms` and `--agnostic-nms`: `detect` selects boxes itself (`--conf`, `--iou`, "
        "`--agnostic`)",
    )
