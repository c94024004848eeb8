"""Checkpoints of one and four channels: their ONNX, and `detect` as users start it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import upstream_layout as layout

from arrays import relative_l2
from command_line import call
from yolotrt_core.errors import UsageError
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.stages import TorchExporter
from yolotrt_torch.yolov5_model import Network


def made(folder: Path, channels: int) -> tuple[Path, Network]:
    config = {**layout.MODERN, "ch": channels}
    network = layout.lively(config)
    return layout.save(folder / "m.pt", config, network=network), network


def export(path: Path, out: Path, **options: Any) -> ModelSpec:
    source = ModelSource(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stem)
    out.mkdir()
    return TorchExporter().export(source, BuildRequest("fp32", 1, 64, 96), TorchOptions(**options), out)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_onnx_computes_what_the_network_does(channels: int, tmp_path: Path) -> None:
    path, network = made(tmp_path, channels)
    spec = export(path, tmp_path / "out")
    assert spec.inputs[0].shape == (1, channels, 64, 96)
    assert spec.channel_order == {1: "grey", 4: "rgba"}[channels]
    images = np.random.default_rng(0).random((1, channels, 64, 96), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    assert relative_l2(session.run(None, {"images": images})[0], expected) <= 1e-5


def test_the_order_of_four_channels_is_an_option(tmp_path: Path) -> None:
    path, _ = made(tmp_path, 4)
    assert export(path, tmp_path / "out", channels="argb").channel_order == "argb"
    path, _ = made(tmp_path, 1)
    with pytest.raises(UsageError, match="`--torch-channels argb` is for a model with four input channels"):
        export(path, tmp_path / "other", channels="argb")


def test_weights_alone_state_their_channels(tmp_path: Path) -> None:
    path, network = made(tmp_path, 4)
    torch.save(network.state_dict(), path)
    yaml = tmp_path / "m.yaml"
    yaml.write_text(json.dumps(layout.MODERN))
    assert export(path, tmp_path / "out", yaml=yaml).inputs[0].shape == (1, 4, 64, 96)


@pytest.mark.parametrize("channels", [1, 4])
def test_yolov5n_of_other_channels_passes_the_gate_and_finds_the_same(
    channels: int, data: Path, tmp_path: Path
) -> None:
    given = data / "weights/yolov5n.pt"
    layout.save_with_channels(given, tmp_path / "m.pt", channels)
    frame = cv2.imread(str(data / "coco/images/val/000000000139.jpg"))
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    noise = np.random.default_rng(0).integers(0, 256, grey.shape, np.uint8)
    for folder, pixels in {
        "own": grey if channels == 1 else np.dstack((noise, frame[..., 1:], frame[..., 0])),
        "usual": np.dstack([grey] * 3) if channels == 1 else frame,
    }.items():
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "0.png"), pixels)
    found = []
    for weights, folder in (("m.pt", "own"), (str(given), "usual")):
        arguments = f"detect {folder} --builder onnxruntime --precision fp16 --imgsz 320 --annotate off --json"
        options = ("--weights", weights, "--eval-data", folder)
        ran = call(*arguments.split(), *options, cwd=tmp_path, store=tmp_path / "store")
        assert ran.code == 0, ran.err
        found.append(json.loads(ran.out)["images"][0]["detections"])
    assert len(found[0]) == len(found[1]) > 2
    for ours, theirs in zip(*found, strict=True):
        assert ours["class_id"] == theirs["class_id"]
        assert ours["box"] == pytest.approx(theirs["box"], abs=2)
        assert ours["score"] == pytest.approx(theirs["score"], abs=0.02)


@pytest.mark.parametrize("channels", [1, 4])
def test_detect_quantized_on_images_with_and_without_alpha(channels: int, tmp_path: Path) -> None:
    made(tmp_path, channels)
    color = cv2.resize(cv2.imread(str(sample_path())), (96, 64))
    grey = cv2.cvtColor(color, cv2.COLOR_BGR2GRAY)
    alpha = np.indices((64, 96), np.uint8).sum(axis=0, dtype=np.uint8)
    pixels = {"color": color, "grey": grey, "alpha": np.dstack((color, alpha))}
    pixels["opaque"] = np.dstack((color, np.full_like(alpha, 255)))
    (tmp_path / "in").mkdir()
    for name, image in pixels.items():
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), image)
    arguments = "detect in --weights m.pt --builder onnxruntime --imgsz 64,96 --conf 0.01 --gate-check off --json"
    for precision in ("fp16", "int8"):
        calibrated = ("--calib-data", "in") if precision == "int8" else ()
        ran = call(*arguments.split(), "--precision", precision, *calibrated, cwd=tmp_path, store=tmp_path / "store")
        assert ran.code == 0, ran.err
        found = {Path(each["path"]).stem: each["detections"] for each in json.loads(ran.out)["images"]}
        assert found["color"]
        if channels == 1:
            assert found["color"] == found["grey"] == found["alpha"] == found["opaque"]
        else:
            assert found["color"] == found["opaque"]
            assert found["alpha"] != found["opaque"] != found["grey"]
    assert cv2.imread(str(tmp_path / "detections" / "alpha.png"), cv2.IMREAD_UNCHANGED).shape == (64, 96, 3)
