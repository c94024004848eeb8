"""Engines for the GPU tests: found ready in YOLOTRT_GPU_ENGINES (a folder per variant), else built."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.engine import build, read_engine_spec
from yolotrt_core.types import EngineSpec

sys.path.insert(0, str(Path(__file__).parent.parent / "plugins" / "tensorrt"))  # head_reference.py

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32-b1": {"precision": "fp32", "flags": {"tensorrt": {"tf32": "off"}}},
    "fp32-b1-split": {"precision": "fp32", "flags": {"tensorrt": {"tf32": "off"}, "fp32": {"convolutions": "split"}}},
    "fp16-b1": {"precision": "fp16"},
    "fp16-b8": {"precision": "fp16", "batch": 8},
    "fp16-b8-dyn": {"precision": "fp16", "batch": 8, "dynamic": True},
    "fp16-b32": {"precision": "fp16", "batch": 32},
    "fp16-b8-last": {"weights": "tf/yolov5n_saved_model", "batch": 8, "flags": {"tf": {"layout": "nhwc"}}},
}


@pytest.fixture(scope="session")
def engine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, EngineSpec]]:
    """YOLOv5n as an engine of one of `VARIANTS`: its path and spec."""
    ready = os.environ.get("YOLOTRT_GPU_ENGINES")
    built = tmp_path_factory.mktemp("engines")

    @functools.cache
    def find(variant: str) -> tuple[Path, EngineSpec]:
        if ready:
            (path,) = (Path(ready) / variant).glob("*.engine")
        else:
            settings = {"builder": "tensorrt", **VARIANTS[variant]}
            weights = data / settings.pop("weights", "weights/yolov5n.pt")
            path = build(weights, imgsz=(640, 640), out=built / variant, store=built / "store", **settings).path
        return path, read_engine_spec(path)

    return find
