"""A session on the stand-in GPU, whose network finds boxes that depend on the image, and what the CPU makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeCuda, FakeEngine, FakeGraph, fake_gpu, fake_kernels
from kernel_emulation import Emulated

from head_reference import Result, reference
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.plugin.stages import DeviceProgram
from yolotrt_core.types import (
    Detections,
    EngineSpec,
    Layout,
    ModelSpec,
    Selection,
    TensorSpec,
    layout_of,
    with_channels,
)
from yolotrt_tensorrt.cuda import graph as cuda_graph
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.runtime import session, slot
from yolotrt_tensorrt.runtime.session import EngineSession

SIDE = 32
CLASSES = 3
ROWS = 40
CHOSEN = Selection(conf=0.05, max_det=20)
PROGRAM = DeviceProgram("output0", CLASSES, "// compiled by the test")
SPEC = ModelSpec(
    (TensorSpec("images", "float32", (2, 3, SIDE, SIDE)),),
    (TensorSpec("output0", "float32", (2, ROWS, 5 + CLASSES)),),
    ("a", "b", "c"),
    (8, 16, 32),
)


def network(images: np.ndarray) -> np.ndarray:
    """Boxes that depend on the image: where they lie and how sure they are."""
    if layout_of(images.shape) == "nhwc":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    rng = np.random.default_rng(0)
    raw = np.tile(rng.uniform(0, 1, (1, ROWS, 5 + CLASSES)).astype(np.float32), (len(images), 1, 1))
    raw[:, :, :4] *= SIDE / 2
    raw[:, :, 0] += 10 * images[:, 0, 3, 3][:, None]
    raw[:, :, 4] *= images.mean(axis=(1, 2, 3))[:, None]
    return raw


class Opened:
    """A session with what it stands on."""

    def __init__(
        self,
        emulated: Emulated,
        monkeypatch: pytest.MonkeyPatch,
        batch: int = 2,
        layout: Layout = "nchw",
        recorded: bool = True,
        network: Callable[[np.ndarray], np.ndarray] = network,
        channels: int = 3,
        **options: Any,
    ) -> None:
        self.cuda = FakeCuda()
        self.gpu = fake_gpu(self.cuda)
        loaded: list[Layout] = []

        def load(*_: object, layout: Layout | None = None) -> object:
            loaded.extend([layout] if layout else [])
            return fake_kernels(emulated, self.cuda)

        monkeypatch.setattr(session, "load_kernels", load)
        monkeypatch.setattr(cuda_graph, "available", lambda: recorded)
        monkeypatch.setattr(slot, "Graph", FakeGraph)
        shape = with_channels(batch, SIDE, SIDE, layout, channels)
        columns = network(np.zeros((1, *shape[1:]), np.float32)).shape[2]
        self.plan = FakeEngine(shape, columns, network, "float32")
        spec = EngineSpec(SPEC, "fp32", "tensorrt", {})
        self.session = EngineSession(self.gpu, self.plan, spec, TensorRTOptions(**options), side_cache=None)  # type: ignore[arg-type]
        assert loaded == [layout]


def sample_images(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 60, (count, 2))
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]


def expected(frames: list[np.ndarray]) -> list[Result]:
    images, geometry = preprocess(frames, (SIDE, SIDE))
    raw = network(images)
    return [reference(r, g.source, (SIDE, SIDE), CHOSEN) for r, g in zip(raw, geometry, strict=True)]


def same(found: list[Detections], wanted: list[Result]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
        assert ours.truncated == theirs.truncated
