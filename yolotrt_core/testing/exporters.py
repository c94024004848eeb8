"""Contract of exporters, see `yolotrt_core.plugin.stages`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from yolotrt_core.errors import YolotrtError
from yolotrt_core.export.parity import ParityOptions, check
from yolotrt_core.plugin.description import Description
from yolotrt_core.plugin.hookspecs import Claim
from yolotrt_core.plugin.stages import ONNX_FILE, REFERENCE_FILE, SourceInfo
from yolotrt_core.serialization import from_json, to_json
from yolotrt_core.testing.session import open_onnx
from yolotrt_core.testing.stage import StageContract, assert_readable
from yolotrt_core.types import BuildRequest, Layout, ModelSource, ModelSpec, TensorSpec, with_channels


class ExporterContract(StageContract):
    """An exporter; give the fixture `source`, a small model of yours of 64 x 64 pixels (or `request_` too)."""

    kind = "exporter"

    @pytest.fixture
    def source(self, tmp_path: Path) -> ModelSource:
        raise NotImplementedError("return the ModelSource of a small model")

    def test_writes_an_onnx_of_the_project_s_form(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
        spec = stage.export(source, request_, options, out)
        assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec
        model = onnx.load(str(out / ONNX_FILE))
        onnx.checker.check_model(model, full_check=True)
        sides = (request_.batch, request_.height, request_.width)
        accepted = [with_channels(*sides, layout) for layout in get_args(Layout)]
        assert spec.inputs in [(TensorSpec("images", "float32", shape),) for shape in accepted]
        assert [value.name for value in model.graph.input] == ["images"]
        assert [value.name for value in model.graph.output] == [tensor.name for tensor in spec.outputs]
        assert spec.labels
        assert spec.strides == tuple(sorted(spec.strides))
        assert {"stride", "names", "task", "imgsz"} <= {each.key for each in model.metadata_props}

    def test_the_onnx_computes_what_its_framework_does(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        spec = stage.export(source, request_, options, out)
        with np.load(out / REFERENCE_FILE, allow_pickle=False) as stored:
            assert stored["images"].shape[1:] == spec.inputs[0].shape[1:]
            assert {tensor.name for tensor in spec.outputs} <= set(stored.files)
            assert float(np.ptp(stored["images"])) > 0.1, "one colour tests nothing"
        with open_onnx(out / ONNX_FILE, spec) as session:
            check(session, out / REFERENCE_FILE, ParityOptions())

    def test_equal_exports_are_equal_bytes(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        written = []
        for name in ("first", "second"):
            (out / name).mkdir()
            stage.export(source, request_, options, out / name)
            written.append((out / name / ONNX_FILE).read_bytes())
        assert written[0] == written[1]

    def test_another_file_is_refused_in_one_line(
        self, stage: Any, request_: BuildRequest, options: Any, out: Path, tmp_path: Path
    ) -> None:
        for data in (b"no model", b""):
            wrong = tmp_path / "wrong.bin"
            wrong.write_bytes(data)
            with pytest.raises(YolotrtError) as told:
                stage.export(ModelSource(wrong, "0" * 64, "wrong"), request_, options, out)
            assert_readable(told.value)

    def test_inspects_its_models_and_no_other_file(self, stage: Any, source: ModelSource, tmp_path: Path) -> None:
        info = stage.inspect(source)
        assert info == stage.inspect(source)
        (tmp_path / "wrong.bin").write_bytes(b"no model")
        for path in (tmp_path, tmp_path / "wrong.bin"):  # `export` reports what is wrong with a file
            assert isinstance(stage.inspect(ModelSource(path, "0" * 64, "wrong")), SourceInfo)

    def test_describes_its_models_and_says_what_is_wrong_with_others(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path, tmp_path: Path
    ) -> None:
        found = stage.describe(source)
        assert from_json(Description, json.loads(json.dumps(to_json(found)))) == found
        assert found.problem == ""
        spec = stage.export(source, request_, options, out)
        for stated, exported in ((found.labels, spec.labels), (found.strides, spec.strides), (found.task, spec.task)):
            assert stated in ((), None, exported)
        known = [layer.operations for layer in found.layers if layer.operations is not None]
        assert found.operations is None or sum(known) <= found.operations
        (tmp_path / "wrong.bin").write_bytes(b"no model")
        wrong = stage.describe(ModelSource(tmp_path / "wrong.bin", "0" * 64, "wrong"))
        assert (wrong.layers, wrong.labels) == ((), ())

    def test_is_chosen_for_its_own_models_only(self, source: ModelSource, tmp_path: Path) -> None:
        choose = getattr(self.plugin, "yolotrt_select_exporter", None)
        if choose is None:
            pytest.skip("the plugin selects no exporter: users must name it with `--exporter`")
        chosen = choose(source=source)
        assert (chosen.exporter if isinstance(chosen, Claim) else chosen) == self.name
        for name, data in (("notes.txt", b"nothing"), ("empty.bin", b"")):
            (tmp_path / name).write_bytes(data)
            assert choose(source=ModelSource(tmp_path / name, "0" * 64, "m")) is None
        assert choose(source=ModelSource(tmp_path, "0" * 64, "folder")) is None
