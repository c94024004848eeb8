"""Engines for the GPU tests, from YOLOTRT_GPU_ENGINES (a folder per variant of engines.py) where they are there."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import engine_of

from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.types import EngineSpec


@pytest.fixture(scope="session")
def engine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, EngineSpec]]:
    """YOLOv5n as an engine of one of `engines.VARIANTS`: its path and spec."""
    ready = os.environ.get("YOLOTRT_GPU_ENGINES")
    folder = Path(ready) if ready else tmp_path_factory.mktemp("engines")

    @functools.cache
    def find(variant: str) -> tuple[Path, EngineSpec]:
        path = engine_of(variant, data, folder)
        return path, read_engine_spec(path)

    return find
