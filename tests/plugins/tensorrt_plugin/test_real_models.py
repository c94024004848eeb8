"""fp16 engines of real checkpoints, from `.pt` to plan, under the installed TensorRT-RTX and under 1.6.1."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trt_build import described

from yolotrt_core.api import build
from yolotrt_core.serialization import from_json
from yolotrt_core.store.store import Store
from yolotrt_core.types import BuildRequest, EngineSpec, ModelSpec, OnnxModel, ShapeRange
from yolotrt_tensorrt.library import RTX_MAGIC

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("installed_rtx")]

PROFILE = ShapeRange((1, 320, 320), (1, 640, 640), (8, 640, 640))
OUTPUTS = {"yolov5n": 85, "helmet_yolov5n": 7, "waste_yolov5n": 7}
CONVOLUTIONS = 60  # of every YOLOv5n: 57 in its Conv blocks, 3 in the head
OLD = "print(json.dumps(build_described(sys.argv[1], sys.argv[2])))"


@dataclass(frozen=True)
class Made:
    """An engine of the installed release, and the typed ONNX it came from."""

    plan: Path
    spec: EngineSpec
    facts: dict[str, Any]
    model: OnnxModel
    request: BuildRequest


@pytest.fixture(scope="module", params=[(n, d) for n in OUTPUTS for d in (False, True)], ids=str)
def made(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("torch", reason="the exporter needs torch (extra `torch`)")
    name, dynamic = request.param
    folder = tmp_path_factory.mktemp(name)
    store = Store(folder / "store")
    profiles = (PROFILE,) if dynamic else ()
    engine = build(
        data / "weights" / f"{name}.pt",
        builder="tensorrt",
        dynamic=dynamic,
        profiles=profiles,
        store=store,
        out=folder / "out",
        imgsz=(640, 640),
    )
    last = engine.steps[-1]
    onnx, spec = folder / "model.onnx", folder / "spec.json"
    store.copy_out(last.action.inputs["onnx"], onnx)
    store.copy_out(last.action.inputs["spec"], spec)
    model = OnnxModel(onnx, last.action.inputs["onnx"], from_json(ModelSpec, json.loads(spec.read_text())))
    asked = BuildRequest("fp16", 1, 640, 640, dynamic, profiles)
    return Made(engine.path, engine.spec, dict(last.record.facts), model, asked)


def test_fp16_engines_of_real_models(made: Made, rtx_old: Callable[..., Any], tmp_path: Path) -> None:
    name = next(n for n in OUTPUTS if made.plan.name.startswith(n))
    output = made.spec.model.outputs[0]
    assert made.plan.read_bytes()[:4] == RTX_MAGIC
    assert made.spec.onnx_sha256 == made.model.sha256
    assert made.spec.profiles == made.request.profiles
    assert (output.name, output.shape[-1]) == ("output0", OUTPUTS[name])
    if not made.request.dynamic:
        assert output.shape == (1, 25200, OUTPUTS[name])
    assert made.facts["convolutions"] == {"fp16": CONVOLUTIONS}
    old = rtx_old(OLD, described(made.model, made.request), tmp_path)
    assert old["spec"]["tools"]["version"] == "1.6.1.120"
    assert old["facts"]["convolutions"] == {"fp16": CONVOLUTIONS}
    assert (tmp_path / "model.engine").read_bytes()[:4] == RTX_MAGIC


def test_forbidding_tf32_splits_every_convolution(data: Path, tmp_path: Path) -> None:
    """TensorRT-RTX multiplies in TF32 whatever its flag says, so the graph has to."""
    pytest.importorskip("torch", reason="the exporter needs torch (extra `torch`)")

    def steps(**flags: Any) -> dict[str, Any]:
        weights = data / "weights" / "yolov5n.pt"
        common = {"builder": "tensorrt", "precision": "fp32", "store": tmp_path / "store", "out": tmp_path / "out"}
        return {s.step.label: s.record.facts for s in build(weights, imgsz=(320, 320), flags=flags, **common).steps}

    forbidden = {"tensorrt": {"tf32": "off"}}
    split = steps(**forbidden)
    assert split["fp32"]["split"] == CONVOLUTIONS
    assert split["build"]["convolutions"] == {"fp32": CONVOLUTIONS}
    assert "fp32" not in steps()
    assert "fp32" not in steps(**forbidden, fp32={"convolutions": "plain"})
