"""Stages whose network has layers, each of which costs a known share of the output when quantized.

The "model" is a text file of `name share` lines. The "network" returns its input times 1 minus the
shares of the layers that are quantized; the "head" finds one box that covers that much of a white image's
width, so its IoU with the whole image is that number too, and so is its score.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fake_stages import (
    FakeBuilder,
    FakeExporter,
    FakePass,
    FakePostprocessor,
    FakeSession,
    FakeStage,
    fake_plugin,
    image_spec,
)
from yolotrt_core.calibration.ranges import Ranges, write_ranges
from yolotrt_core.plugin.options import NoOptions, option
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE, REFERENCE_FILE, Calibrator
from yolotrt_core.types import (
    BuildRequest,
    EngineSpec,
    ModelSource,
    ModelSpec,
    OnnxModel,
    Precision,
)

RUNS: Counter[str] = Counter()
SHARES = {"model.0": 0.01, "model.1": 0.12, "model.2": 0.002, "model.3": 0.05}
SIZE = (32, 64)
# Milliseconds of an inference by precision; what is left in fp16 adds its share.
MS: dict[str, float] = {"fp32": 16.0, "fp16": 10.0, "int8": 2.0}
MS_OF_A_LAYER = 3.0


class LayeredExporter(FakeExporter):
    name = "layered"
    Options = NoOptions

    def export(self, source: ModelSource, request: BuildRequest, options: Any, out: Path) -> ModelSpec:
        shares = {name: float(share) for name, share in (line.split() for line in source.path.read_text().splitlines())}
        (out / ONNX_FILE).write_text(json.dumps({"shares": shares, "quantized": []}))
        spec = image_spec(request, "layered")
        images = np.ones(spec.inputs[0].shape, np.float32)
        np.savez(out / REFERENCE_FILE, images=images, output0=images)
        return spec


@dataclass(frozen=True)
class QuantizerOptions:
    keep: str | None = option(None, help="Layers kept")
    base: str = option("fp16", help="Type of the rest")


class Quantizer(FakePass):
    name = "int8"
    Options: type = QuantizerOptions
    needs_calibration = True
    quantizes = True

    def applies(self, request: BuildRequest, options: Any) -> bool:
        return request.precision == "int8"

    def apply(
        self, model: OnnxModel, calibration: Any, request: BuildRequest, options: Any, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Any]]:
        RUNS["lowered"] += 1
        network = json.loads(model.path.read_text())
        (out / ONNX_FILE).write_text(json.dumps({**network, "quantized": list(self.layers(model, options))}))
        return model.spec, {}

    def layers(self, model: OnnxModel, options: Any) -> tuple[str, ...]:
        kept = (options.keep or "").split(",")
        return tuple(n for n in json.loads(model.path.read_text())["shares"] if n not in kept)


class Half(Quantizer):
    name = "fp16"
    Options = NoOptions
    needs_calibration = False
    quantizes = False

    def applies(self, request: BuildRequest, options: Any) -> bool:
        return request.precision == "fp16"

    def apply(
        self, model: OnnxModel, calibration: Any, request: BuildRequest, options: Any, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Any]]:
        (out / ONNX_FILE).write_text(json.dumps({**json.loads(model.path.read_text()), "type": "half"}))
        return model.spec, {}


class LayeredCalibrator(FakeStage, Calibrator):
    name = "percentile"
    default_for: frozenset[Precision] = frozenset({"int8"})

    def calibrate(
        self, model: OnnxModel, batches: Iterator[Any], request: BuildRequest, options: Any, out: Path
    ) -> str:
        seen = sum(len(batch) for batch in batches)
        write_ranges(out / RANGES_FILE, Ranges(model.sha256, "fake", {"images": float(seen)}))
        return "fake"


class LayeredSession(FakeSession):
    def __init__(self, network: Mapping[str, Any], spec: EngineSpec) -> None:
        super().__init__(1 - sum(network["shares"][name] for name in network["quantized"]), spec)
        self._ms = MS[spec.precision]
        if spec.precision == "int8":
            self._ms += MS_OF_A_LAYER * (len(network["shares"]) - len(network["quantized"]))

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        time.sleep(self._ms / 1000)
        return super().infer(images)


class LayeredBuilder(FakeBuilder):
    precisions: frozenset[Precision] = frozenset({"fp32", "fp16", "int8"})

    def build(self, model: OnnxModel, *rest: Any) -> EngineSpec:
        RUNS["build"] += 1
        if RUNS["build"] == RUNS["interrupt at"]:
            raise KeyboardInterrupt
        return super().build(model, *rest)

    def open(self, engine: Path, spec: EngineSpec, options: Any, side_cache: Any) -> LayeredSession:
        return LayeredSession(json.loads(engine.read_text()), spec)


class WideBox(FakePostprocessor):
    name = "widebox"
    heads = frozenset({"layered"})

    def reach(self, score: float) -> float:
        return score


def layered_stages(*more_builders: Any, own: Any = None, head: Any = None) -> Registry:
    """Return a registry of the stages above; `own` and `head` take the places of builder and postprocessor."""
    plugin = fake_plugin(
        "layered",
        exporters=[LayeredExporter()],
        passes=[Half(), Quantizer()],
        calibrators=[LayeredCalibrator()],
        builders=[own or LayeredBuilder(), *more_builders],
        postprocessors=[head or WideBox()],
    )
    return Registry.of(plugin)


def write_model(folder: Path, shares: Mapping[str, float] = SHARES) -> Path:
    """Write a model of these layers."""
    path = folder / "model.txt"
    path.write_text("\n".join(f"{name} {share}" for name, share in shares.items()))
    return path


def write_images(folder: Path, count: int = 3) -> Path:
    """Write white images, each labelled as one thing that fills it; all of another content."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        frame = np.full((SIZE[0] * (number + 1), SIZE[1] * (number + 1), 3), 255, np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), frame)
        (folder / "labels" / f"{number}.txt").write_text("0 0.5 0.5 1 1\n")
    return folder
