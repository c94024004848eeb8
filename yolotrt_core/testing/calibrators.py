"""Contract of calibrators, see `yolotrt_core.plugin.stages`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.calibration.ranges import read_ranges
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.plugin.stages import RANGES_FILE
from yolotrt_core.testing.model import small_model
from yolotrt_core.testing.stage import StageContract
from yolotrt_core.types import BuildRequest, OnnxModel


class CalibratorContract(StageContract):
    """A calibrator; runs on `small_model` and 12 images unless you give other fixtures."""

    kind = "calibrator"

    @pytest.fixture
    def model(self, tmp_path: Path) -> OnnxModel:
        return small_model(tmp_path / "model")

    @pytest.fixture
    def images(self) -> NDArray[np.float32]:
        """The images to calibrate on, float32 (n, 3, H, W) in 0..1."""
        return reference_images(12, 64, 64)

    def test_writes_ranges_of_existing_tensors(
        self, stage: Any, model: OnnxModel, images: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
        method = stage.calibrate(model, _batches(images), request_, options, out)
        ranges = read_ranges(out / RANGES_FILE).for_model(model.sha256)
        assert ranges.method == method
        graph = onnx.load(str(model.path)).graph
        known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        assert ranges.tensors
        assert set(ranges.tensors) <= known
        read = {node.input[0] for node in graph.node if node.op_type == "Conv"}
        assert read <= set(ranges.tensors), "an input of a convolution has no range, so it cannot be quantized"

    def test_takes_each_image_once_and_one_batch_at_a_time(
        self, stage: Any, model: OnnxModel, images: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        taken = []

        def counted() -> Iterator[NDArray[np.float32]]:
            for batch in _batches(images):
                taken.append(len(batch))
                yield batch

        stage.calibrate(model, counted(), request_, options, out)
        assert sum(taken) in (0, len(images))

    def test_equal_images_give_equal_ranges(
        self, stage: Any, model: OnnxModel, images: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        written = []
        for name in ("first", "second"):
            (out / name).mkdir()
            stage.calibrate(model, _batches(images), request_, options, out / name)
            written.append((out / name / RANGES_FILE).read_bytes())
        assert written[0] == written[1]


def _batches(images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(images), 4):
        yield images[first : first + 4]
