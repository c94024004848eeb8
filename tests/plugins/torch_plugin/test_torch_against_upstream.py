"""Every architecture and form of checkpoint that upstream's own package can make, against its own answers.

Needs a second Python with PyPI's `yolov5` 7.0.14 (it does not install beside current PyTorch), named by
`YOLOTRT_PEER_PYTHON`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.yolov5_model import fuse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = os.environ.get("YOLOTRT_PEER_PYTHON")
    if not python:
        pytest.skip("YOLOTRT_PEER_PYTHON names no Python with the package `yolov5` 7.0.14")
    folder = tmp_path_factory.mktemp("upstream")
    script = Path(__file__).with_name("upstream_checkpoints.py")
    subprocess.run(
        [python, str(script), str(folder)],
        check=True,
        capture_output=True,
        env={**os.environ, "YOLO_AUTOINSTALL": "false"},
    )
    return folder


def test_every_checkpoint_answers_as_upstream_does(made: Path) -> None:
    errors = {}
    for path in sorted(made.glob("*.pt")):
        network = network_from_checkpoint(read_checkpoint(path))
        with np.load(path.with_suffix(".npz")) as arrays:
            images, expected = torch.from_numpy(arrays["images"]), arrays["output0"].astype(np.float64)
        with torch.inference_mode():
            found = [network(images).numpy()]
            fuse(network)
            found.append(network(images).numpy())
        errors[path.stem] = max(np.linalg.norm(f - expected) / np.linalg.norm(expected) for f in found)
    assert len(errors) == 19
    assert max(errors.values()) <= 1e-6, errors
