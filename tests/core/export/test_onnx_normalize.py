"""A converter's graph brought to the project's form; numbers by onnxruntime, ranks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolotrt_core.errors import StageError
from yolotrt_core.export import onnx_normalize
from yolotrt_core.export.output_layout import Rows
from yolotrt_core.testing import small_model
from yolotrt_core.types import OnnxModel

onnx = pytest.importorskip("onnx", reason="brings an ONNX to form")
runtime = pytest.importorskip("onnxruntime", reason="runs an ONNX")

PIXELS = Rows((8,), 2, "anchor", "pixels")


@pytest.fixture
def small(tmp_path: Path) -> OnnxModel:
    return small_model(tmp_path)


def _foreign(path: Path, start: int) -> Any:
    """The model as a converter that numbers everything from `start` and describes it would have written it."""
    model = onnx.load(str(path))
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {name: f"{name}:{start + number}" for number, name in enumerate(sorted(names))}
    for weight in graph.initializer:
        weight.name = renamed[weight.name]
    onnx_normalize.rename_tensors(model, renamed)
    for number, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}__{start + number}", f"line {start}"
    graph.name = model.doc_string = graph.doc_string = f"converted from run {start}"
    moved = sorted(graph.initializer, key=lambda weight: weight.name, reverse=bool(start % 2))
    del graph.initializer[:]
    graph.initializer.extend(moved)
    return model


def _run(model: Any, images: np.ndarray) -> np.ndarray:
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output0"], {"images": images})[0])


def test_equal_networks_give_equal_bytes_and_the_project_s_names(small: OnnxModel) -> None:
    written = []
    for start in (1, 700):
        model = _foreign(small.path, start)
        onnx_normalize.apply(model, small.spec, PIXELS, (64, 64))
        onnx.checker.check_model(model, full_check=True)
        written.append(model.SerializeToString(deterministic=True))
    assert written[0] == written[1]
    images = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    assert np.array_equal(_run(model, images), _run(onnx.load(str(small.path)), images))


def test_rows_by_cell_in_shares_of_the_image_are_rearranged(small: OnnxModel) -> None:
    images = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    plain = onnx.load(str(small.path))
    moved = onnx.load(str(small.path))
    onnx_normalize.arrange_rows(moved, Rows((8,), 2, "cell", "normalised"), (64, 64))
    onnx.checker.check_model(moved, full_check=True)
    by_cell = _run(plain, images).reshape(8, 8, 2, 8)
    by_cell[..., :4] *= 64
    assert np.allclose(_run(moved, images), by_cell.transpose(2, 0, 1, 3).reshape(1, 128, 8), atol=1e-3)


def test_more_than_one_output_is_refused(small: OnnxModel) -> None:
    model = onnx.load(str(small.path))
    model.graph.output.append(onnx.helper.make_tensor_value_info("maps", 1, None))
    with pytest.raises(StageError, match="one input and one output, found 1 and 2"):
        onnx_normalize.apply(model, small.spec, PIXELS, (64, 64))
