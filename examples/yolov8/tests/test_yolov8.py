import numpy as np
import pytest
import yolotrt_yolov8
from small_yolov8 import write_model

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.testing import ExporterContract, PostprocessorContract
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, TensorSpec


def source_of(path):
    return ModelSource(path, sha256_of(path), path.stem)


class TestExporter(ExporterContract):
    plugin, name = yolotrt_yolov8, "yolov8"

    @pytest.fixture
    def source(self, tmp_path):
        return source_of(write_model(tmp_path / "model.onnx"))

    def test_free_sizes_stay_free_or_become_those_of_the_request(self, stage, options, tmp_path):
        source = source_of(write_model(tmp_path / "model.onnx", free=True))
        (tmp_path / "free").mkdir()
        (tmp_path / "fixed").mkdir()
        spec = stage.export(source, BuildRequest("fp32", 2, 64, 96, dynamic=True), options, tmp_path / "free")
        assert [t.shape for t in (*spec.inputs, *spec.outputs)] == [
            ("batch", 3, "height", "width"),
            ("batch", 7, "anchors"),
        ]
        spec = stage.export(source, BuildRequest("fp32", 2, 64, 96), options, tmp_path / "fixed")
        assert [t.shape for t in (*spec.inputs, *spec.outputs)] == [(2, 3, 64, 96), (2, 7, 96)]
        assert stage.inspect(source).fixed_size is False

    def test_a_fixed_size_is_not_changed(self, stage, source, options, tmp_path):
        assert stage.inspect(source).imgsz == (64, 64)
        for request in (BuildRequest("fp32", 1, 96, 64), BuildRequest("fp32", 1, 64, 64, dynamic=True)):
            with pytest.raises(UsageError, match="takes images of"):
                stage.export(source, request, options, tmp_path)

    def test_free_columns_that_are_not_those_of_the_classes_are_refused(self, stage, options, tmp_path):
        source = source_of(write_model(tmp_path / "model.onnx", free=True, names="{0: 'a', 1: 'b'}"))
        with pytest.raises(UsageError, match=r"expected 6 values for each box, found \(1, 7, 64\)"):
            stage.export(source, BuildRequest("fp32", 1, 64, 64), options, tmp_path)

    @pytest.mark.parametrize("other", [{"task": "segment"}, {"names": "{0: 'a'}"}, {"names": ""}, {"stride": "x"}])
    def test_other_models_are_not_claimed(self, other, tmp_path):
        source = source_of(write_model(tmp_path / "model.onnx", **other))
        assert yolotrt_yolov8.yolotrt_select_exporter(source) is None
        unknown = source_of(write_model(tmp_path / "model.onnx", free=True, author="unknown"))
        assert yolotrt_yolov8.yolotrt_select_exporter(unknown) is None


class TestPostprocessor(PostprocessorContract):
    plugin, name = yolotrt_yolov8, "yolov8_boxes"

    @pytest.fixture
    def spec(self):
        images, output = TensorSpec("images", "float32", (2, 3, 64, 64)), TensorSpec("output0", "float32", (2, 7, 40))
        return ModelSpec((images,), (output,), ("a", "b", "c"), head="yolov8")

    @pytest.fixture
    def raw(self):
        random = np.random.default_rng(0)
        parts = [random.uniform(8, 56, (2, 2, 40)), random.uniform(4, 20, (2, 2, 40)), random.random((2, 3, 40))]
        return {"output0": np.concatenate(parts, 1).astype(np.float32)}
