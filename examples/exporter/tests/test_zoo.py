import json
import zipfile

import pytest
import yolotrt_zoo

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.testing import ExporterContract, small_model
from yolotrt_core.types import BuildRequest, ModelSource


def bundle(folder, strides=(8,)):
    path = folder / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(small_model(folder / "network").path, "network.onnx")
        archive.writestr("card.json", json.dumps({"title": "small", "classes": ["a", "b", "c"], "strides": strides}))
    return ModelSource(path, sha256_of(path), "bundle")


class TestZoo(ExporterContract):
    plugin, name = yolotrt_zoo, "zoo"

    @pytest.fixture
    def source(self, tmp_path):
        return bundle(tmp_path)


def test_a_card_that_is_wrong(tmp_path):
    stage = yolotrt_zoo.ZooExporter()
    with pytest.raises(UsageError, match="with strides"):
        stage.export(bundle(tmp_path, [16]), BuildRequest("fp32", 1, 64, 64), stage.Options(), tmp_path)
