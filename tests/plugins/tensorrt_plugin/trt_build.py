"""Builds an engine and tells of it in JSON; imported by tests and by snippets under another TensorRT."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from yolotrt_core.errors import YolotrtError
from yolotrt_core.serialization import from_json, to_json
from yolotrt_core.types import BuildRequest, ModelSpec, OnnxModel, ShapeRange
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.stages import TensorRTBuilder


class NoCache:
    """A SideCache that keeps nothing."""

    def load(self, *_: object) -> None:
        return None

    def save(self, *_: object) -> None:
        return None


def build(model: OnnxModel, request: BuildRequest, out: Path, **options: Any) -> dict[str, Any]:
    """Run preflight and build; return spec, facts and seconds, or the error's message and hint."""
    out.mkdir(parents=True, exist_ok=True)
    builder, chosen = TensorRTBuilder(), TensorRTOptions(**options)
    began = time.perf_counter()
    try:
        builder.preflight(request, chosen)
        spec = builder.build(model, None, request, chosen, out, NoCache())
    except YolotrtError as err:
        return {"error": str(err), "hint": err.hint, "kind": type(err).__name__}
    seconds = time.perf_counter() - began
    return {"spec": to_json(spec), "facts": json.loads((out / "facts.json").read_text()), "seconds": seconds}


def build_described(description: str, out: str, **options: Any) -> dict[str, Any]:
    """Do what `build` does for a model and request that `described` wrote."""
    told = json.loads(description)
    model = OnnxModel(Path(told["path"]), told["sha256"], from_json(ModelSpec, told["spec"]))
    return build(model, from_json(BuildRequest, told["request"]), Path(out), **options)


def described(model: OnnxModel, request: BuildRequest) -> str:
    """Write a model and a request as text for another process."""
    return json.dumps(
        {"path": str(model.path), "sha256": model.sha256, "spec": to_json(model.spec), "request": to_json(request)}
    )


def request(precision: Any = "fp32", *profiles: ShapeRange, size: int = 32, batch: int = 1) -> BuildRequest:
    """Return a request of one image of `size` squared, dynamic if profiles are given."""
    return BuildRequest(precision, batch, size, size, bool(profiles), profiles)
