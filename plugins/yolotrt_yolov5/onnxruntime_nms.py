"""Greedy suppression by onnxruntime, where installed, as an approximation for `yolotrt_core.inference.nms`.

Its compiled `NonMaxSuppression` is faster than NumPy for hundreds to thousands of boxes, but compares in
float32. `yolotrt_core.inference.nms.nms` corrects its result to be exact.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.inference.nms import Approximate

_loading = threading.Lock()


@cache
def find() -> Approximate | None:
    """Return onnxruntime's suppression, or None if it or onnx (needed to build its graph) is missing."""
    return suppress if util.find_spec("onnxruntime") and util.find_spec("onnx") else None


def suppress(boxes_xyxy: NDArray[np.float32], groups: NDArray[np.int32], iou: float) -> NDArray[np.intp]:
    """Return the ascending indices of kept boxes; see `yolotrt_core.inference.nms.Approximate`."""
    import numpy as np

    count = len(boxes_xyxy)
    classes = np.cumsum(np.bincount(groups) > 0) - 1
    # The operator sorts by score within each class and skips 0; any descending scores keep the order.
    scores = np.zeros((1, int(classes[-1]) + 1, count), dtype=np.float32)
    scores[0, classes.take(groups), np.arange(count)] = np.arange(count, 0, -1)
    with _loading:
        session = _session()
    (selected,) = session.run(None, {"boxes": boxes_xyxy[None], "scores": scores, "iou": np.array([iou], np.float32)})
    kept: NDArray[np.intp] = np.sort(selected[:, 2])
    return kept


@cache
def _session() -> Any:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    inputs = {"boxes": (1, "boxes", 4), "scores": (1, "classes", "boxes"), "iou": (1,)}
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "max_output", "iou", "min_score"], ["selected"])
    graph = helper.make_graph(
        [node],
        "suppress",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("selected", TensorProto.INT64, ("kept", 3))],
        [
            numpy_helper.from_array(np.array([2**31 - 1], np.int64), "max_output"),
            numpy_helper.from_array(np.zeros(1, np.float32), "min_score"),
        ],
    )
    # Versions supported by every onnxruntime since 1.10.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
