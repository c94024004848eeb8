"""A whole set of small but working stages, for tests of the core without any framework.

The "model" is a text file with one number per line; the "network" multiplies its input by their
product. Every stage counts how often it ran.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.plugin.hookspecs import API_VERSION, hookimpl
from yolotrt_core.plugin.options import option
from yolotrt_core.plugin.stages import (
    ONNX_FILE,
    REFERENCE_FILE,
    Builder,
    Exporter,
    Pass,
    Postprocessor,
    Session,
    Stage,
)
from yolotrt_core.types import (
    BuildRequest,
    Detections,
    EngineSpec,
    Geometry,
    ModelSource,
    ModelSpec,
    OnnxModel,
    Selection,
    TensorSpec,
)

RUNS: Counter[str] = Counter()


class FakeStage(Stage):
    """Base of the fake stages of all kinds."""

    sources: tuple[str, ...] = ("yolotrt_core.export.parity",)
    name: str = ""

    def fingerprint(self, options: Any) -> Mapping[str, str]:
        return {"tool": "1.0"}


def image_spec(request: BuildRequest, head: str) -> ModelSpec:
    """Describe a network whose answer is an image of its input's size."""
    shape = (request.batch, 3, request.height, request.width)
    tensors = (TensorSpec("images", "float32", shape),), (TensorSpec("output0", "float32", shape),)
    return ModelSpec(*tensors, ("thing",), (32,), head)


@dataclass(frozen=True)
class ExporterOptions:
    offset: float = option(0.0, help="Spoils the ONNX by this much")


class FakeExporter(FakeStage, Exporter):
    name = "text"
    Options: type = ExporterOptions

    def export(self, source: ModelSource, request: BuildRequest, options: Any, out: Path) -> ModelSpec:
        RUNS["export"] += 1
        try:
            factors = [float(line) for line in source.path.read_text().split()]
        except ValueError as err:
            raise UsageError(f"`{source.path}` is not a list of numbers: {err}") from err
        product = float(np.prod(factors))
        (out / ONNX_FILE).write_text(json.dumps(product + options.offset))
        images = np.linspace(0, 1, 3 * request.height * request.width, dtype=np.float32)
        images = images.reshape(1, 3, request.height, request.width)
        np.savez(out / REFERENCE_FILE, images=images, output0=images * np.float32(product))
        return image_spec(request, "fake")


class FakePass(FakeStage, Pass):
    name = "halve"
    order = 50

    def applies(self, request: BuildRequest, options: Any) -> bool:
        return request.precision == "fp16"

    def apply(
        self, model: OnnxModel, calibration: Any, request: BuildRequest, options: Any, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Any]]:
        RUNS["halve"] += 1
        (out / ONNX_FILE).write_bytes(model.path.read_bytes())
        return model.spec, {"nodes": 1}


class FakeSession(Session):
    def __init__(self, factor: float, spec: EngineSpec) -> None:
        self.factor, self.spec = factor, spec

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"output0": images * np.float32(self.factor)}


@dataclass(frozen=True)
class BuilderOptions:
    fail: bool = option(False, help="Fail with a message")
    level: int = option(3, help="Effort", minimum=0, maximum=5)


class FakeBuilder(FakeStage, Builder):
    name = "onnxruntime"
    Options: type = BuilderOptions
    engine_file = "model.bin"
    precisions = frozenset({"fp32", "fp16"})
    priority = 50

    @property
    def is_reference_runtime(self) -> bool:  # type: ignore[override] # not inherited by other fake builders
        return self.name == "onnxruntime"

    def preflight(self, request: BuildRequest, options: Any) -> None:
        if request.batch > 64:
            raise StageError("this builder builds batches up to 64")

    def build(
        self, model: OnnxModel, calibration: Any, request: BuildRequest, options: Any, out: Path, side_cache: Any
    ) -> EngineSpec:
        RUNS["build"] += 1
        print("a tool that prints")
        if options.fail:
            raise StageError("the tool said no", hint="ask again")
        (out / self.engine_file).write_bytes(model.path.read_bytes())
        (out / "facts.json").write_text('{"kernels": 7}')
        return EngineSpec(model.spec, request.precision, self.name, {"tool": "1.0"}, request.profiles)

    def open(self, engine: Path, spec: EngineSpec, options: Any, side_cache: Any) -> FakeSession:
        return FakeSession(json.loads(engine.read_text()), spec)


class FakePostprocessor(FakeStage, Postprocessor):
    """Finds one box as high and wide as the image; its score is the mean of the answer, at most 1."""

    name = "fakehead"
    heads = frozenset({"fake"})

    def decode(
        self,
        raw: Mapping[str, NDArray[Any]],
        spec: ModelSpec,
        geometry: Sequence[Geometry],
        selection: Selection,
        options: Any,
    ) -> list[Detections]:
        found = []
        for image, placed in zip(raw["output0"], geometry, strict=True):
            score = min(float(image.mean()), 1.0)
            height, width = placed.source
            box = np.array([[0, 0, width * self.reach(score), height]], np.float32)
            found.append(Detections(box, np.array([score], np.float32), np.zeros(1, np.int64)))
        return found

    def reach(self, score: float) -> float:
        """Return how much of the image's width the box covers."""
        return 1.0


def fake_plugin(name: str = "fake", **brought: Sequence[Any]) -> Any:
    """Return a plugin object with the stages above; `passes=[Mine()]` and the like take the place of a kind's."""
    registry: dict[str, Sequence[Any]] = {
        "exporters": [FakeExporter()],
        "passes": [FakePass()],
        "calibrators": [],
        "builders": [FakeBuilder()],
        "postprocessors": [FakePostprocessor()],
    }
    assert brought.keys() <= registry.keys()
    registry |= brought

    class Plugin:
        YOLOTRT_API = API_VERSION
        __name__ = name

        @hookimpl
        def yolotrt_exporters(self) -> Sequence[Any]:
            return registry["exporters"]

        @hookimpl
        def yolotrt_passes(self) -> Sequence[Any]:
            return registry["passes"]

        @hookimpl
        def yolotrt_calibrators(self) -> Sequence[Any]:
            return registry["calibrators"]

        @hookimpl
        def yolotrt_builders(self) -> Sequence[Any]:
            return registry["builders"]

        @hookimpl
        def yolotrt_postprocessors(self) -> Sequence[Any]:
            return registry["postprocessors"]

        @hookimpl
        def yolotrt_select_exporter(self, source: ModelSource) -> str | None:
            return registry["exporters"][0].name if source.path.suffix == ".txt" else None

    return Plugin()
