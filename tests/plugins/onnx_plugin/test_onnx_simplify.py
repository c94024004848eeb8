"""The simplify pass: smaller, the same function, and loud when a tool misbehaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim
import pytest

from command_line import descriptors_taken_over
from yolotrt_core.errors import StageError
from yolotrt_core.types import BuildRequest, OnnxModel
from yolotrt_onnx.options import SimplifyOptions
from yolotrt_onnx.stages import SimplifyPass

REQUEST = BuildRequest("fp32", 1, 64, 64)
WriteToy = Callable[..., OnnxModel]


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def simplify(model: OnnxModel, out: Path, tool: str = "onnxsim") -> Any:
    out.mkdir(exist_ok=True)
    return SimplifyPass().apply(model, None, REQUEST, SimplifyOptions(tool), out)  # type: ignore[arg-type]


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim", "both"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_same_function_and_interface_from_fewer_nodes(
    toy_model: WriteToy, tmp_path: Path, tool: str, dynamic: bool
) -> None:
    model = toy_model(dynamic=dynamic)
    spec, facts = simplify(model, tmp_path / "out", tool)
    before, after = onnx.load(model.path), onnx.load(tmp_path / "out" / "model.onnx")

    assert facts["nodes_before"] == len(before.graph.node)
    assert facts["nodes"] == len(after.graph.node) < len(before.graph.node)
    assert facts["tools"] == (["onnxsim", "onnxslim"] if tool == "both" else [tool])
    assert facts["versions"].keys() == {"onnx", *facts["tools"]}
    assert not {"Constant", "Identity"} & {node.op_type for node in after.graph.node}
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert spec.provenance == model.spec.provenance
    assert spec.inputs[0].shape == (("batch", 3, "height", "width") if dynamic else (1, 3, 64, 64))

    images = np.random.default_rng(1).random((2, 3, 96, 64) if dynamic else (1, 3, 64, 64), np.float32)
    np.testing.assert_allclose(run(after, images), run(before, images), rtol=1e-5, atol=1e-5)


def test_static_toy_ends_without_anything_superfluous(toy_model: WriteToy, tmp_path: Path) -> None:
    # 31 nodes as written: 1 Identity and 2 Constants go, nothing else can.
    assert simplify(toy_model(), tmp_path / "out")[1]["nodes"] == 28


def test_equal_input_gives_equal_bytes(toy_model: WriteToy, tmp_path: Path) -> None:
    for name in ("one", "two"):
        simplify(toy_model(dynamic=True), tmp_path / name, "both")
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


def test_switched_off() -> None:
    assert not SimplifyPass().applies(REQUEST, SimplifyOptions("off"))
    assert SimplifyPass().applies(REQUEST, SimplifyOptions())


def test_a_tool_that_raises_is_named(toy_model: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        raise RuntimeError("shape inference\nwent wrong")

    monkeypatch.setattr(onnxslim, "slim", broken)
    with pytest.raises(StageError, match="`onnxslim` failed on this graph: shape inference went wrong") as caught:
        simplify(toy_model(), tmp_path / "out", "onnxslim")
    assert "--simplify-tool off" in str(caught.value.hint)
    assert not list((tmp_path / "out").iterdir())


def test_what_tools_print_is_no_message_of_a_command(
    toy_model: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxsim 0.8 prints a warning for every node whose size is free."""

    def noisy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        os.write(2, b"WARNING: failed to run Concat")
        return model, True

    monkeypatch.setattr(onnxsim, "simplify", noisy)
    with descriptors_taken_over():
        simplify(toy_model(), tmp_path / "out")
    assert capfd.readouterr().err == ""


def test_a_tool_that_is_not_installed_is_named(
    toy_model: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(StageError, match="`onnxslim` cannot be imported") as caught:
        simplify(toy_model(), tmp_path / "out", "onnxslim")
    assert "pip install onnxslim" in str(caught.value.hint)


def test_onnxsim_finding_its_own_result_wrong(
    toy_model: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxsim, "simplify", lambda model: (model, False))
    with pytest.raises(StageError, match="its result is wrong"):
        simplify(toy_model(), tmp_path / "out")


def _frozen_batch(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _half_output(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _renamed_input(graph: onnx.GraphProto) -> None:
    graph.input[0].name = "image"


def _lost_output(graph: onnx.GraphProto) -> None:
    del graph.output[:]


def _dangling(graph: onnx.GraphProto) -> None:
    del graph.node[0]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_frozen_batch, r"`onnxslim` changed the inputs from .*\('\?', 3, '\?', '\?'\).* to .*\(1, 3, '\?', '\?'\)"),
        (_half_output, "changed the outputs from `output0: float32.* to `output0: float16"),
        (_renamed_input, "changed the inputs from `images.* to `image:"),
        (_lost_output, "changed the outputs"),
        (_dangling, "`onnxslim` produced an invalid ONNX model"),
    ],
)
def test_a_tool_that_damages_the_graph_is_refused(
    toy_model: WriteToy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[onnx.GraphProto], None],
    complaint: str,
) -> None:
    def damaging(model: onnx.ModelProto) -> onnx.ModelProto:
        damage(model.graph)
        return model

    monkeypatch.setattr(onnxslim, "slim", damaging)
    with pytest.raises(StageError, match=complaint) as caught:
        simplify(toy_model(dynamic=True), tmp_path / "out", "onnxslim")
    assert "--simplify-tool off" in str(caught.value.hint)
    assert not list((tmp_path / "out").iterdir())


def test_metadata_survives_a_tool_that_rewrites_it(
    toy_model: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rewriting(model: onnx.ModelProto) -> onnx.ModelProto:
        onnx.helper.set_model_props(model, {"stride": "8", "tool": "was here"})
        return model

    monkeypatch.setattr(onnxslim, "slim", rewriting)
    model = toy_model()
    simplify(model, tmp_path / "out", "onnxslim")
    assert onnx.load(tmp_path / "out" / "model.onnx").metadata_props == onnx.load(model.path).metadata_props


def test_the_tools_print_nothing(toy_model: WriteToy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    simplify(toy_model(dynamic=True), tmp_path / "out", "both")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08"])
def test_a_file_that_is_no_onnx(toy_model: WriteToy, tmp_path: Path, content: bytes) -> None:
    model = toy_model()
    model.path.write_bytes(content)
    with pytest.raises(StageError, match=r"`toy.onnx` is not a valid ONNX model"):
        simplify(model, tmp_path / "out")


def test_key_names_only_the_tools_that_run() -> None:
    stage = SimplifyPass()
    assert stage.fingerprint(SimplifyOptions("onnxslim")).keys() == {"onnx", "onnxslim"}
    assert stage.fingerprint(SimplifyOptions("both")).keys() == {"onnx", "onnxsim", "onnxslim"}
    assert stage.fingerprint(SimplifyOptions("onnxsim"))["onnxsim"] == onnxsim.__version__.removeprefix("v")


def test_planning_imports_no_framework() -> None:
    program = (
        "import sys, yolotrt_onnx\n"
        "for stage in yolotrt_onnx.yolotrt_passes():\n"
        "    assert stage.available().ok, stage.available()\n"
        "    stage.fingerprint(stage.Options())\n"
        "print([name for name in ('onnx', 'onnxsim', 'onnxslim', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
