"""What all tests share: a store, the outside data, and the reasons for what is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolotrt_core.store.store import Store

ROOT = Path(__file__).resolve().parent.parent


def data_root() -> Path | None:
    """Return the folder of outside test data, or None where there is none."""
    named = os.environ.get("YOLOTRT_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if (folder / "weights").is_dir() else None


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of outside test data (weights/, coco/, tf/, reference/)."""
    folder = data_root()
    if folder is None:
        pytest.skip("no test data: set YOLOTRT_TEST_DATA to a folder with weights/, coco/, reference/, tf/")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty artifact store."""
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any("gpu" in item.keywords for item in items):
        return
    reason = _no_gpu()
    if reason:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str:
    """Say why GPU tests cannot run here; empty if they can."""
    try:
        import pycuda.driver as cuda
    except ImportError as err:
        return f"pycuda is not installed ({err})"
    try:
        cuda.init()
    except cuda.Error as err:
        return f"no usable NVIDIA GPU ({err})"
    return "" if cuda.Device.count() else "no NVIDIA GPU"
