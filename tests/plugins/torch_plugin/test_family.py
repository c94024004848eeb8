"""Checkpoints of the whole family, made by upstream's own package, against its answers beside them.

Needs a folder of NAME.pt and NAME.npz (`images`, `output0`), named by `YOLOTRT_TEST_FAMILY`; with NAME.float64.npy,
from `tests/bench/family_float64.py`, the tolerance is twice upstream's own float32 error if that exceeds 1e-5.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from arrays import relative_l2
from yolotrt_core.errors import UsageError
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.yolov5_model import fuse

pytestmark = pytest.mark.slow


def test_every_detection_model_answers_as_upstream_does() -> None:
    folder = os.environ.get("YOLOTRT_TEST_FAMILY")
    if not folder:
        pytest.skip("YOLOTRT_TEST_FAMILY names no folder of family checkpoints")
    wrong, refused = {}, {}
    for path in sorted(Path(folder).glob("*.pt")):
        try:
            network = network_from_checkpoint(read_checkpoint(path))
        except UsageError as err:
            refused[path.stem] = err.message
            continue
        fuse(network)
        with np.load(path.with_suffix(".npz")) as arrays:
            images, upstream = torch.from_numpy(arrays["images"]), arrays["output0"]
        with torch.inference_mode():
            answer = network(images)
        found = (answer[0] if isinstance(answer, tuple) else answer).numpy()
        exact = path.with_suffix(".float64.npy")
        expected = np.load(exact) if exact.exists() else upstream
        if relative_l2(found, expected) > max(1e-5, 2 * relative_l2(upstream, expected)):
            wrong[path.stem] = relative_l2(found, expected)
    assert not wrong
    assert all("classification" in text for text in refused.values()), refused
