import numpy as np
import pytest
import yolotrt_anchor_free

from yolotrt_core.inference.letterbox import geometry
from yolotrt_core.testing import PostprocessorContract
from yolotrt_core.types import ModelSpec, Selection, TensorSpec


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

    def test_boxes_are_where_they_were_put(self, stage, spec, options):
        output = np.zeros((1, 7, 40), np.float32)
        output[0, :4, 3], output[0, 5, 3] = (20, 30, 8, 4), 0.5  # class b
        output[0, :4, 7], output[0, 5, 7] = (21, 30, 8, 4), 0.75  # shares 28 of 36 pixels with it, and is surer
        output[0, :4, 9], output[0, 6, 9] = (21, 30, 8, 4), 0.625  # the same place, but class c
        raw, placed = {"output0": output}, [geometry((64, 64), (64, 64))]
        (found,) = stage.decode(raw, spec, placed, Selection(conf=0.25, iou=0.45), options)
        np.testing.assert_array_equal(found.boxes, [[17, 28, 25, 32]] * 2)
        np.testing.assert_array_equal(found.scores, np.float32([0.75, 0.625]))
        np.testing.assert_array_equal(found.class_ids, [1, 2])
        (alone,) = stage.decode(raw, spec, placed, Selection(conf=0.25, iou=0.45, agnostic=True), options)
        np.testing.assert_array_equal(alone.class_ids, [1])
