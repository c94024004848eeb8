"""Export of classification models, against the head written out in NumPy."""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import upstream_layout as layout
from torch import nn

from arrays import relative_l2
from yolotrt_core.errors import UsageError
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, ShapeRange
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.exporter import outputs_of
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.stages import TorchExporter

STATIC = BuildRequest("fp32", 2, 64, 64)
DYNAMIC = BuildRequest("fp32", 1, 64, 64, True, (ShapeRange((1, 32, 32), (1, 64, 64), (4, 128, 128)),))
# The mean and deviation of ImageNet's channels, as published with it.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classify") / "c.pt"
    return layout.save(path, layout.CLASSIFY, kind="ClassificationModel")


def source_of(path: Path) -> ModelSource:
    return ModelSource(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stem)


def export(path: Path, out: Path, request: BuildRequest, **options: str) -> ModelSpec:
    return TorchExporter().export(source_of(path), request, TorchOptions(**options), out)


def run(model: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (answer,) = session.run(["output0"], {"images": images})
    return answer


def written_out(path: Path, images: np.ndarray) -> np.ndarray:
    """Normalize, run the backbone's layers one by one, and compute the head in float64."""
    network = network_from_checkpoint(read_checkpoint(path))
    x = torch.from_numpy(((images.astype(np.float64).transpose(0, 2, 3, 1) - MEAN) / DEVIATION).astype(np.float32))
    x = x.permute(0, 3, 1, 2)
    with torch.inference_mode():
        for layer in network.model[:-1]:
            x = layer(x)
        x = network.head.conv(x)
    mean = x.double().numpy().mean((2, 3))
    linear = network.head.linear
    return mean @ linear.weight.double().numpy().T + linear.bias.double().numpy()


def test_output_is_that_of_the_head_written_out(checkpoint: Path, tmp_path: Path) -> None:
    spec = export(checkpoint, tmp_path, STATIC)
    assert (spec.task, spec.head, spec.fit, spec.has_boxes) == ("classify", "yolov5_cls", "crop", False)
    assert (spec.labels, spec.outputs[0].shape) == (("kind 0", "kind 1", "kind 2"), (2, 3))
    metadata = {p.key: p.value for p in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert metadata["task"] == "classify" and len(ast.literal_eval(metadata["names"])) == 3
    images = reference_images(2, 64, 64)
    assert relative_l2(run(tmp_path / "model.onnx", images), written_out(checkpoint, images)) <= 2e-6


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_dynamic_export_at_several_shapes(exporter: str, checkpoint: Path, tmp_path: Path) -> None:
    spec = export(checkpoint, tmp_path, DYNAMIC, exporter=exporter)
    assert spec.outputs[0].shape == ("batch", 3)
    network = network_from_checkpoint(read_checkpoint(checkpoint))
    for shape in ((1, 32, 32), (3, 128, 128)):
        images = reference_images(*shape)
        assert relative_l2(run(tmp_path / "model.onnx", images), outputs_of(network, images)["output0"]) <= 2e-6


def test_size_is_that_of_the_training(checkpoint: Path, tmp_path: Path) -> None:
    def add_transforms(model: nn.Module) -> None:
        crop = sys.modules["models.common"].CenterCrop()
        crop.h = crop.w = 160
        transforms = nn.Module()
        transforms.transforms = [crop]
        model.__dict__["transforms"] = transforms  # upstream's is no layer

    assert TorchExporter().inspect(source_of(checkpoint)).imgsz == (224, 224)  # upstream's own default
    path = layout.save(tmp_path / "c.pt", layout.CLASSIFY, kind="ClassificationModel", edit=add_transforms)
    assert TorchExporter().inspect(source_of(path)).imgsz == (160, 160)
    other = layout.save(tmp_path / "d.pt", layout.MODERN)
    assert TorchExporter().inspect(source_of(other)).imgsz is None


@pytest.mark.parametrize("edit", ["pool", "order", "layer", "groups"])
def test_refuses_what_other_code_has_changed(edit: str, tmp_path: Path) -> None:
    def change(model: nn.Module) -> None:
        head = model.model[-1]
        if edit == "pool":
            head.pool.output_size = 2
        elif edit == "order":
            model.model._modules["3"] = model.model._modules.pop("3")
        elif edit == "layer":
            model.model[1] = nn.Sequential(model.model[1])
        else:
            head.conv.conv.groups = (1, 2)

    path = layout.save(tmp_path / "c.pt", layout.CLASSIFY, kind="ClassificationModel", edit=change)
    with pytest.raises(UsageError) as told:
        network_from_checkpoint(read_checkpoint(path))
    named = {"pool": "output_size", "order": "no layers", "layer": "`model.1`", "groups": "groups"}
    assert named[edit] in str(told.value) and told.value.hint


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("0.conv", "kernel_size", 10**9),
        ("0.conv", "out_channels", 10**12),
        ("0.conv", "groups", 0),
        ("1.conv", "stride", 0),
        ("1.conv", "in_channels", -4),
        ("0.conv", "padding", "same"),
        ("0.conv", "in_channels", 1),
        ("2.cv3.conv", "out_channels", 0),
        ("5.linear", "out_features", 10**12),
        ("5.linear", "out_features", [3] * 10**6),
    ],
)
def test_values_without_sense_are_refused(module: str, name: str, value: object, tmp_path: Path) -> None:
    def change(model: nn.Module) -> None:
        setattr(model.model.get_submodule(module), name, value)

    path = layout.save(tmp_path / "c.pt", layout.CLASSIFY, kind="ClassificationModel", edit=change)
    with pytest.raises(UsageError) as told:
        network_from_checkpoint(read_checkpoint(path))
    assert told.value.hint and len(str(told.value)) < 400


def test_refuses_a_size_that_is_not_a_square(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="central square"):
        export(checkpoint, tmp_path, BuildRequest("fp32", 1, 64, 96))
