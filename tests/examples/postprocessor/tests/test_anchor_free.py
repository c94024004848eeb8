import numpy as np
import pytest
import yolotrt_anchor_free

from yolotrt_core.testing import PostprocessorContract
from yolotrt_core.types import ModelSpec, TensorSpec


class TestAnchorFree(PostprocessorContract):
    plugin, name = yolotrt_anchor_free, "anchor_free"

    @pytest.fixture
    def spec(self):
        images, output = TensorSpec("images", "float32", (2, 3, 64, 64)), TensorSpec("output0", "float32", (2, 7, 40))
        return ModelSpec((images,), (output,), ("a", "b", "c"), (8,), head="yolov8")

    @pytest.fixture
    def raw(self):
        random = np.random.default_rng(0)
        parts = [random.uniform(8, 56, (2, 2, 40)), random.uniform(4, 20, (2, 2, 40)), random.random((2, 3, 40))]
        return {"output0": np.concatenate(parts, 1).astype(np.float32)}
