"""Contract of passes, see `yolotrt_core.plugin.stages`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.plugin.stages import ONNX_FILE
from yolotrt_core.serialization import to_json
from yolotrt_core.testing.model import small_model
from yolotrt_core.testing.session import open_onnx
from yolotrt_core.testing.stage import StageContract
from yolotrt_core.types import PRECISIONS, BuildRequest, Calibration, OnnxModel


class PassContract(StageContract):
    """A pass; runs on `small_model` unless you give the fixture `model`.

    Attributes:
        tolerance: maximum relative L2 change of the output.
    """

    kind = "pass"
    tolerance: ClassVar[float] = 1e-4

    @pytest.fixture
    def model(self, tmp_path: Path) -> OnnxModel:
        return small_model(tmp_path / "model")

    @pytest.fixture
    def calibration(self) -> Calibration | None:
        """The ranges for a pass that needs them."""
        return None

    def test_declares_when_it_applies(self, stage: Any, options: Any, request_: BuildRequest) -> None:
        for precision in PRECISIONS:
            assert stage.applies(dataclasses.replace(request_, precision=precision), options) in (True, False)
        if stage.quantizes:
            assert {"keep", "base"} <= {field.name for field in dataclasses.fields(options)}

    def test_gives_the_same_network_back(
        self, stage: Any, model: OnnxModel, calibration: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
        before = model.path.read_bytes()
        spec, facts = stage.apply(model, calibration, request_, options, out)
        assert model.path.read_bytes() == before, "a pass may not change its input"
        assert json.loads(json.dumps(to_json(dict(facts)))) == to_json(dict(facts))
        changed, original = onnx.load(str(out / ONNX_FILE)), onnx.load_from_string(before)
        onnx.checker.check_model(changed, full_check=True)
        for part in ("input", "output"):
            names = [[value.name for value in getattr(each.graph, part)] for each in (original, changed)]
            assert names[0] == names[1]
        kept = {each.key: each.value for each in changed.metadata_props}
        assert {each.key: each.value for each in original.metadata_props}.items() <= kept.items()
        assert (spec.labels, spec.strides, spec.head) == (model.spec.labels, model.spec.strides, model.spec.head)
        images = reference_images(request_.batch, request_.height, request_.width)
        with open_onnx(model.path, model.spec) as one, open_onnx(out / ONNX_FILE, spec) as other:
            want, have = one.infer(images), other.infer(images)
        for name, values in want.items():
            assert np.linalg.norm(have[name] - values) <= self.tolerance * np.linalg.norm(values)

    def test_equal_models_give_equal_bytes(
        self, stage: Any, model: OnnxModel, calibration: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        written = []
        for name in ("first", "second"):
            (out / name).mkdir()
            stage.apply(model, calibration, request_, options, out / name)
            written.append((out / name / ONNX_FILE).read_bytes())
        assert written[0] == written[1]
