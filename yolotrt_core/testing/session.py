"""An ONNX opened as the parity check does, and the side cache for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.plugin.registry import Registry
from yolotrt_core.types import EngineSpec, ModelSpec


class MemorySideCache:
    """A `SideCache` in memory, for tests of builders."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        return self.files.get(name + json.dumps(dict(material), sort_keys=True))

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        self.files[name + json.dumps(dict(material), sort_keys=True)] = data


def open_onnx(path: Path, spec: ModelSpec) -> Any:
    """Open an ONNX as the parity check of a build does."""
    pytest.importorskip("onnxruntime", reason="this contract runs an ONNX")
    runtime = Registry.discover().reference_runtime()
    engine = EngineSpec(model=spec, precision="fp32", builder=runtime.name, tools={})
    return runtime.stage.open(path, engine, runtime.stage.Options(), MemorySideCache())
