"""Files that onnxruntime's quantizer wrote, rewritten with Q/DQ nodes, against the unchanged files in onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_onnx.options import OnnxSourceOptions
from yolotrt_onnx.stages import OnnxExporter

Make = Callable[..., Any]


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self) -> None:
        self._images: Iterator[int] = iter(range(3))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        seed = next(self._images, None)
        return None if seed is None else {"images": sample(seed)}


def sample(seed: int = 9) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((1, 3, 64, 64), dtype=np.float32)


def run(model: Any) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output0"], {"images": sample()})[0])


def quantized(toy: Any, folder: Path, form: QuantFormat, symmetric: bool, **settings: Any) -> Any:
    helper.set_model_props(toy, {"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    for name in ("stem", "head"):  # biases, which the quantizer makes int32
        count = next(w for w in toy.graph.initializer if w.name == name).dims[0]
        bias = np.random.default_rng(count).standard_normal(count).astype(np.float32)
        toy.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"{name}_bias"))
        next(n for n in toy.graph.node if name in n.input).input.append(f"{name}_bias")
    onnx.save(toy, folder / "float.onnx")
    logging.disable(logging.WARNING)  # advice about pre-processing
    try:
        quantize_static(
            folder / "float.onnx",
            folder / "quantized.onnx",
            _Images(),
            quant_format=form,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
            **settings,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "quantized.onnx")


def export(folder: Path, name: str = "quantized") -> ModelSpec:
    path = folder / f"{name}.onnx"
    source = ModelSource(path, sha256_of(path), path.stem)
    return OnnxExporter().export(source, BuildRequest("int8", 1, 64, 64), OnnxSourceOptions(), folder)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
def test_rewritten_files_give_the_same_boxes(
    form: QuantFormat, symmetric: bool, per_channel: bool, toy_yolo: Make, tmp_path: Path
) -> None:
    operators = ["Conv", "Sigmoid", "Mul"] if form == QuantFormat.QOperator else ["Conv"]
    kept = ["xy_pixels", "wh_pixels"]  # scores in 0..1 and pixels would share one scale
    toy = toy_yolo()
    for node in toy.graph.node:
        node.name = node.name or node.output[0]
    skipped = [n.name for n in toy.graph.node if n.output[0] in (*kept, "xy2", "wh2", "soft")]
    model = quantized(
        toy,
        tmp_path,
        form,
        symmetric,
        per_channel=per_channel,
        op_types_to_quantize=operators,
        nodes_to_exclude=skipped,
    )
    spec = export(tmp_path)
    made = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert not [n for n in made.graph.node if n.domain or "Linear" in n.op_type.replace("antizeLinear", "")]
    weights = {w.name: w.data_type for w in made.graph.initializer}
    read = [weights.get(n.input[0]) for n in made.graph.node if n.op_type == "DequantizeLinear"]
    assert onnx.TensorProto.INT32 not in read
    assert spec.provenance["source_precision"] == "int8"
    assert ("zero_points" in spec.provenance) == (not symmetric)
    expected, found = run(model), run(made)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)
    assert (np.abs(found - expected).max(axis=-1) < 1e-6).mean() > 0.9  # elsewhere one step of a scale


def test_what_has_no_float_form_is_refused(toy_yolo: Make, tmp_path: Path) -> None:
    toy = toy_yolo()
    helper.set_model_props(toy, {"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    toy.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
    toy.graph.initializer.extend([onnx.numpy_helper.from_array(v, n) for v, n in ((scale, "s"), (zero, "z"))])
    at = next(i for i, n in enumerate(toy.graph.node) if n.op_type == "Reshape" and "raw" in n.input)
    made = [
        helper.make_node("QuantizeLinear", ["raw", "s", "z"], ["codes"]),
        helper.make_node(
            "QLinearSoftmax",
            ["codes", "s", "z", "s", "z"],
            ["means"],
            name="mean",
            domain="com.microsoft",
            opset=13,
            axis=1,
        ),
        helper.make_node("DequantizeLinear", ["means", "s", "z"], ["mean_values"]),
        helper.make_node("Add", ["raw", "mean_values"], ["sum"]),
    ]
    for place, node in enumerate(made):
        toy.graph.node.insert(at + place, node)
    toy.graph.node[at + len(made)].input[0] = "sum"
    onnx.save(toy, tmp_path / "given.onnx")
    with pytest.raises(UsageError, match=r"node `mean` \(QLinearSoftmax\)") as caught:
        export(tmp_path, "given")
    assert "QuantFormat.QDQ" in str(caught.value.hint)
