"""Export of segmentation models, against the head written out in PyTorch's functions."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import upstream_layout as layout
from torch.nn import functional

from arrays import relative_l2
from yolotrt_core.errors import UsageError
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, ShapeRange
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.exporter import outputs_of
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.segment_head import Segment
from yolotrt_torch.stages import TorchExporter
from yolotrt_torch.yolov5_model import Network

STATIC = BuildRequest("fp32", 1, 64, 96)
DYNAMIC = BuildRequest("fp32", 1, 64, 96, True, (ShapeRange((1, 32, 32), (2, 64, 96), (4, 128, 128)),))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.save(tmp_path_factory.mktemp("segment") / "s.pt", layout.SEGMENT, kind="SegmentationModel")


def export(path: Path, out: Path, request: BuildRequest, **options: str) -> ModelSpec:
    source = ModelSource(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stem)
    return TorchExporter().export(source, request, TorchOptions(**options), out)


def run(model: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def features(network: Network, images: torch.Tensor) -> list[torch.Tensor]:
    """Return what the head gets."""
    caught: list[list[torch.Tensor]] = []
    hook = network.detect.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    network(images)
    hook.remove()
    return caught[0]


def normed(x: torch.Tensor, block: torch.nn.Module) -> torch.Tensor:
    """Convolve, normalize, activate."""
    norm = block.bn
    x = functional.conv2d(x, block.conv.weight, None, 1, block.conv.kernel_size[0] // 2)
    x = (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
    x = x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return x * x.sigmoid()


def test_outputs_are_those_of_the_head_written_out(checkpoint: Path) -> None:
    network = network_from_checkpoint(read_checkpoint(checkpoint))
    head = network.detect
    assert isinstance(head, Segment) and (head.nm, head.npr) == (8, 16)
    images = reference_images(1, 64, 96)
    found = outputs_of(network, images)
    with torch.inference_mode():
        levels = features(network, torch.from_numpy(images))
        proto = head.proto
        finest = normed(levels[0], proto.cv1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        prototypes = normed(normed(finest, proto.cv2), proto.cv3).numpy()
        rows = []
        for level, m, stride, anchors in zip(levels, head.m, network.stride, head.anchors, strict=True):
            maps = m(level).double().numpy()
            maps = maps.reshape(1, head.na, head.no, *maps.shape[2:]).transpose(0, 1, 3, 4, 2)
            y, x = np.mgrid[: maps.shape[2], : maps.shape[3]]
            s = 1 / (1 + np.exp(-maps[..., : 5 + head.nc]))
            xy = (s[..., :2] * 2 - 0.5 + np.stack((x, y), -1)) * stride
            wh = (s[..., 2:4] * 2) ** 2 * (anchors.numpy() * stride)[:, None, None]
            rows.append(np.concatenate((xy, wh, s[..., 4:], maps[..., 5 + head.nc :]), -1).reshape(1, -1, head.no))
    assert relative_l2(found["output1"], prototypes) <= 1e-6
    assert relative_l2(found["output0"], np.concatenate(rows, 1)) <= 1e-6


def test_static_export_has_both_outputs_and_the_task(checkpoint: Path, tmp_path: Path) -> None:
    spec = export(checkpoint, tmp_path, STATIC)
    assert (spec.task, spec.head, spec.labels) == ("segment", "yolov5_seg", ("kind 0", "kind 1", "kind 2"))
    model = onnx.load(str(tmp_path / "model.onnx"))
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["task"] == "segment" and len(ast.literal_eval(metadata["names"])) == 3
    images = reference_images(1, 64, 96)
    found = run(tmp_path / "model.onnx", images)
    assert {t.name: t.shape for t in spec.outputs} == {name: array.shape for name, array in found.items()}
    expected = outputs_of(network_from_checkpoint(read_checkpoint(checkpoint)), images)
    for name, array in expected.items():
        assert relative_l2(found[name], array) <= 1e-6


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_dynamic_export_at_several_shapes(exporter: str, checkpoint: Path, tmp_path: Path) -> None:
    spec = export(checkpoint, tmp_path, DYNAMIC, exporter=exporter)
    assert spec.outputs[1].shape == ("batch", 8, "mask_height", "mask_width")
    network = network_from_checkpoint(read_checkpoint(checkpoint))
    for shape in ((1, 32, 32), (3, 64, 128)):
        images = reference_images(*shape)
        found, expected = run(tmp_path / "model.onnx", images), outputs_of(network, images)
        for name, array in expected.items():
            assert relative_l2(found[name], array) <= 1e-6, (name, shape)


@pytest.mark.parametrize("masks", [0, -1, 10**9, "32", None, True])
def test_refuses_a_head_with_other_coefficients(masks: object) -> None:
    config = {
        **layout.SEGMENT,
        "head": [*layout.SEGMENT["head"][:-1], [[8, 5], 1, "Segment", ["nc", "anchors", masks]]],
    }
    with pytest.raises(UsageError, match="mask coefficients"):
        Network(config)
