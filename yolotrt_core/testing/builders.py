"""Contract of builders, see `yolotrt_core.plugin.stages`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.plugin.description import Description
from yolotrt_core.serialization import from_json, to_json
from yolotrt_core.testing.model import small_model
from yolotrt_core.testing.session import MemorySideCache, open_onnx
from yolotrt_core.testing.stage import StageContract, assert_readable
from yolotrt_core.types import PRECISIONS, BuildRequest, EngineSpec, OnnxModel


class BuilderContract(StageContract):
    """A builder; builds `small_model` in fp32 unless you give other fixtures.

    Attributes:
        tolerance: maximum relative L2 error of its engine's output against onnxruntime's.
    """

    kind = "builder"
    tolerance: ClassVar[float] = 1e-3

    @pytest.fixture
    def model(self, tmp_path: Path) -> OnnxModel:
        return small_model(tmp_path / "model")

    def test_builds_what_it_declares(
        self, stage: Any, model: OnnxModel, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        assert stage.precisions <= set(PRECISIONS)
        stage.preflight(request_, options)
        spec = stage.build(model, None, request_, options, out, MemorySideCache())
        assert (out / stage.engine_file).stat().st_size > 0
        assert (spec.builder, spec.precision) == (self.name, request_.precision)
        assert from_json(EngineSpec, json.loads(json.dumps(to_json(spec)))) == spec
        assert [tensor.name for tensor in spec.model.inputs] == ["images"]
        described = stage.describe(out / stage.engine_file, spec)
        assert from_json(Description, json.loads(json.dumps(to_json(described)))) == described
        assert (described.labels, described.inputs) == (spec.model.labels, spec.model.inputs)

    def test_its_engine_computes_what_the_onnx_does(
        self, stage: Any, model: OnnxModel, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        can = stage.runnable()
        if not can.ok:
            pytest.skip(f"engines do not run on this machine: {can.reason}")
        cache = MemorySideCache()
        spec = stage.build(model, None, request_, options, out, cache)
        images = reference_images(request_.batch, request_.height, request_.width)
        with open_onnx(model.path, model.spec) as session:
            want = session.infer(images)
        with stage.open(out / stage.engine_file, spec, options, cache) as session:
            have = session.infer(images)
            assert session.spec == spec
            for wrong in (images[:, :2], images.astype(np.float64), np.concatenate([images, images])):
                with pytest.raises(UsageError) as told:
                    session.infer(wrong)
                assert_readable(told.value)
        assert have.keys() == want.keys()
        for name, values in want.items():
            assert have[name].dtype == np.float32
            assert np.linalg.norm(have[name] - values) <= self.tolerance * np.linalg.norm(values)
