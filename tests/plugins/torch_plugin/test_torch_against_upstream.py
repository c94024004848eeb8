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

from arrays import relative_l2
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.exporter import outputs_of
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
            expected = {name: arrays[name].astype(np.float64) for name in arrays.files}
        images = expected.pop("images").astype(np.float32)
        found = [outputs_of(network, images)]
        fuse(network)
        found.append(outputs_of(network, images))
        errors[path.stem] = max(relative_l2(f[name], want) for f in found for name, want in expected.items())
    assert len(errors) == 26
    assert max(errors.values()) <= 1e-6, errors
