"""What a stage hands on is checked right after it ran: the one at fault is named, and nothing of it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_stages import FakeBuilder, FakeExporter, FakePass, FakePostprocessor, FakeStage, fake_plugin
from yolotrt_core.api import Engine, build_engine
from yolotrt_core.errors import StageError
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.registered import OWN_DIST, PluginSource
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE, REFERENCE_FILE, Calibrator, OnnxContents
from yolotrt_core.store.store import Store
from yolotrt_core.types import ModelSpec, TensorSpec

METADATA = {"stride": "32", "names": "{0: 'thing'}", "task": "detect", "imgsz": "[32, 64]"}
IMAGES = TensorSpec("images", "float32", (1, 3, 32, 64))
OUTPUT = TensorSpec("output0", "float32", (1, 3, 32, 64))


class _Reader(FakeBuilder):
    """Tells what the test says an ONNX holds."""

    def __init__(self, **held: Any) -> None:
        self.held = {"inputs": (IMAGES,), "outputs": (OUTPUT,), "metadata": METADATA} | held

    def contents(self, onnx: Path) -> OnnxContents:
        if self.held.get("garbage"):
            raise StageError("it is empty")
        return OnnxContents(self.held["inputs"], self.held["outputs"], self.held["metadata"])


def _stages(builder: Any = None, **brought: Any) -> Registry:
    own = fake_plugin(exporters=[], passes=[], builders=[builder or FakeBuilder()])
    type(own).yolotrt_select_exporter = None
    other = fake_plugin(**({"builders": [], "postprocessors": [], "passes": []} | brought))
    return Registry.load(
        [
            PluginSource("good", OWN_DIST, "1.0", lambda: own),
            PluginSource("bad", "bad-dist", "1.0", lambda: other),
        ]
    )


def _build(registry: Registry, store: Store, tmp_path: Path, **settings: Any) -> Engine:
    weights = tmp_path / "model.txt"
    weights.write_text("2 3")
    wanted = BuildSettings(weights=weights, imgsz=(32, 64), **({"precision": "fp16"} | settings))
    return build_engine(wanted, store=store, registry=registry, out=tmp_path / "out")


def _refusal(registry: Registry, store: Store, tmp_path: Path, stage: str, **settings: Any) -> str:
    """Build twice, for what failed must not be found the second time; return what is told."""
    told = []
    for _ in range(2):
        with pytest.raises(StageError) as caught:
            _build(registry, store, tmp_path, **settings)
        assert caught.value.stage == stage
        assert caught.value.hint == "plugin bug: please report it to the authors of `bad-dist`"
        told.append(caught.value.message)
    assert told[0] == told[1]
    return told[0]


class _Exporter(FakeExporter):
    """Does its work, then what the test wants done to it."""

    def __init__(self, spoil: Callable[[ModelSpec, Path], Any] = lambda spec, out: spec) -> None:
        self.spoil = spoil

    def export(self, source: Any, request: Any, options: Any, out: Path) -> Any:
        return self.spoil(super().export(source, request, options, out), out)


def _without(name: str) -> Callable[[ModelSpec, Path], ModelSpec]:
    def spoil(spec: ModelSpec, out: Path) -> ModelSpec:
        (out / name).unlink()
        return spec

    return spoil


def _writing(name: str, text: str) -> Callable[[ModelSpec, Path], ModelSpec]:
    def spoil(spec: ModelSpec, out: Path) -> ModelSpec:
        (out / name).write_text(text)
        return spec

    return spoil


def _reference(**arrays: Any) -> Callable[[ModelSpec, Path], ModelSpec]:
    def spoil(spec: ModelSpec, out: Path) -> ModelSpec:
        np.savez(out / REFERENCE_FILE, **arrays)
        return spec

    return spoil


EXPORTS = [
    (_without(ONNX_FILE), "did not write `model.onnx`"),
    (_without(REFERENCE_FILE), "did not write `reference.npz`"),
    (_writing(REFERENCE_FILE, "no archive"), "wrote an invalid `reference.npz`, expected a NumPy archive"),
    (_reference(images=np.zeros(1)), "wrote a `reference.npz` without `output0`; found `images`"),
    (_reference(output0=np.zeros(1)), "wrote a `reference.npz` without `images`; found `output0`"),
    (lambda spec, out: None, "returned NoneType `None`, expected a `ModelSpec`"),
    (lambda spec, out: ModelSpec, "returned the class `ModelSpec`, expected a `ModelSpec`"),
    (lambda spec, out: replace(spec, outputs=()), "returned a spec with outputs tuple `()`, expected `TensorSpec`s"),
]


@pytest.mark.parametrize(("spoil", "words"), EXPORTS)
def test_an_export_that_is_none(spoil: Any, words: str, store: Store, tmp_path: Path) -> None:
    told = _refusal(_stages(exporters=[_Exporter(spoil)]), store, tmp_path, "export")
    assert told.startswith(f"exporter `text` of `bad-dist` {words}")


CONTENTS: list[tuple[Mapping[str, Any], str]] = [
    ({"inputs": (replace(IMAGES, name="input_layer"),)}, "with the inputs `input_layer`, expected one, named `images`"),
    ({"inputs": (IMAGES, replace(IMAGES, name="mask"))}, "with the inputs `images`, `mask`, expected one"),
    (
        {"inputs": (replace(IMAGES, shape=(1, 32, 64, 3)),)},
        "whose input `images` is float32 (1, 32, 64, 3), expected float32 (1, 3, 32, 64)",
    ),
    (
        {"inputs": (replace(IMAGES, shape=("batch", 3, 32, 64)),)},
        "whose input `images` is float32 (batch, 3, 32, 64), expected float32 (1, 3, 32, 64)",
    ),
    ({"inputs": (replace(IMAGES, dtype="uint8"),)}, "whose input `images` is uint8 (1, 3, 32, 64)"),
    ({"outputs": (replace(OUTPUT, name="boxes"),)}, "with the outputs `boxes`, expected `output0`"),
    ({"outputs": (replace(OUTPUT, shape=(1, 3, 9, 9)),)}, "whose output `output0` is float32 (1, 3, 9, 9), expected"),
    ({"metadata": {"names": "", "task": "", "stride": ""}}, "without `imgsz` in its metadata"),
    ({"garbage": True}, "wrote an invalid `model.onnx`: it is empty"),
]


@pytest.mark.parametrize(("held", "words"), CONTENTS)
def test_an_onnx_that_is_not_its_spec_s(held: Mapping[str, Any], words: str, store: Store, tmp_path: Path) -> None:
    told = _refusal(_stages(_Reader(**held), exporters=[_Exporter()]), store, tmp_path, "export")
    assert told.startswith("exporter `text` of `bad-dist` wrote a")
    assert words in told


@pytest.mark.parametrize("shape", [(1, 3, "rows", 64), ()])
def test_an_output_may_be_left_open(shape: Any, store: Store, tmp_path: Path) -> None:
    registry = _stages(_Reader(outputs=(replace(OUTPUT, shape=shape),)), exporters=[_Exporter()])
    assert _build(registry, store, tmp_path, precision="fp32").path.is_file()


def test_labels_that_do_not_fit_the_head(store: Store, tmp_path: Path) -> None:
    rows = TensorSpec("output0", "float32", (1, 100, 8))

    def spoil(spec: ModelSpec, out: Path) -> ModelSpec:
        return replace(spec, outputs=(rows,), head="yolov5", labels=("a", "b"))

    class Head(FakePostprocessor):
        name = "rows"
        heads = frozenset({"yolov5"})
        columns_before_classes = 5

    registry = _stages(_Reader(outputs=(rows,)), exporters=[_Exporter(spoil)], postprocessors=[Head()])
    assert _refusal(registry, store, tmp_path, "export") == (
        "exporter `text` of `bad-dist` returned 2 labels for an output (1, 100, 8): the head `yolov5` has "
        "5 + classes columns, so 3 labels are expected"
    )


class _Pass(FakePass):
    def __init__(self, answer: Any = None, writes: bool = True) -> None:
        self.answer, self.writes = answer, writes

    def apply(self, model: Any, calibration: Any, request: Any, options: Any, out: Path) -> Any:
        if self.writes:
            (out / ONNX_FILE).write_bytes(model.path.read_bytes())
        return self.answer if self.answer is not None else (model.spec, {})


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (_Pass(writes=False), "did not write `model.onnx`"),
        (_Pass("done"), "returned str `'done'`, expected a tuple of `ModelSpec` and facts"),
        (_Pass((1, {})), "returned int `1`, expected a tuple of `ModelSpec` and facts"),
    ],
)
def test_a_pass_that_hands_on_nothing(stage: Any, words: str, store: Store, tmp_path: Path) -> None:
    told = _refusal(_stages(exporters=[FakeExporter()], passes=[stage]), store, tmp_path, "halve")
    assert told == f"pass `halve` of `bad-dist` {words}"


def test_a_pass_that_renames_the_input_is_blamed_and_not_the_exporter(store: Store, tmp_path: Path) -> None:
    class Renames(_Pass):
        def apply(self, model: Any, *given: Any) -> Any:
            answer = super().apply(model, *given)
            reader.held["inputs"] = (replace(IMAGES, name="x"),)
            return answer

    reader = _Reader()
    with pytest.raises(StageError, match="pass `halve` of `bad-dist` wrote an ONNX with the inputs `x`"):
        _build(_stages(reader, exporters=[FakeExporter()], passes=[Renames()]), store, tmp_path)


class _Calibrator(FakeStage, Calibrator):
    name = "lazy"
    needs_images = False

    def __init__(self, text: str | None, method: Any = "lazy") -> None:
        self.text, self.method = text, method

    def calibrate(self, model: Any, batches: Any, request: Any, options: Any, out: Path) -> Any:
        if self.text is not None:
            (out / RANGES_FILE).write_text(self.text)
        return self.method


class _Quantizes(FakePass):
    needs_calibration = True


RANGES = json.dumps({"schema": 1, "onnx_sha256": "0", "method": "lazy", "tensors": {}})


@pytest.mark.parametrize(
    ("calibrator", "words"),
    [
        (_Calibrator(None), "did not write `ranges.json`"),
        (_Calibrator("{"), "wrote an invalid `ranges.json`"),
        (_Calibrator(RANGES, 7), "returned int `7`, expected the method as a str"),
    ],
)
def test_a_calibrator_that_measures_nothing(calibrator: Any, words: str, store: Store, tmp_path: Path) -> None:
    brought = {"exporters": [FakeExporter()], "passes": [_Quantizes()], "calibrators": [calibrator]}
    told = _refusal(_stages(**brought), store, tmp_path, "calibrate", calibrator="lazy")
    assert told.startswith(f"calibrator `lazy` of `bad-dist` {words}")


class _Builder(FakeBuilder):
    name = "bad"

    def __init__(self, answer: Any = None, file: bool = True, facts: str = "{}") -> None:
        self.answer, self.file, self.facts = answer, file, facts

    def build(self, model: Any, calibration: Any, request: Any, options: Any, out: Path, side_cache: Any) -> Any:
        spec = super().build(model, calibration, request, options, out, side_cache)
        (out / "facts.json").write_text(self.facts)
        if not self.file:
            (out / self.engine_file).unlink()
        return self.answer or spec


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (_Builder(file=False), "did not write `model.bin`"),
        (_Builder("done"), "returned str `'done'`, expected an `EngineSpec`"),
        (_Builder(facts="[]"), "wrote a `facts.json` that does not hold a JSON object"),
        (_Builder(facts="{"), "wrote invalid JSON in `facts.json`"),
    ],
)
def test_a_builder_that_builds_nothing(builder: Any, words: str, store: Store, tmp_path: Path) -> None:
    registry = _stages(exporters=[FakeExporter()], builders=[builder])
    told = _refusal(registry, store, tmp_path, "build", builder="bad")
    assert told.startswith(f"builder `bad` of `bad-dist` {words}")
