"""What all tests share: a store, the outside data, and the reasons for what is skipped."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processors, and threads that wait for one another cost more than they bring. Before imports.
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(threads, "1")

from yolotrt_core.benchmark import throughput
from yolotrt_core.store.store import Store
from yolotrt_core.tuning import engine_timing

_TOGETHER = ("tests/plugins/tf_plugin",)
_SLOW = 40  # tests that are not marked slow take as long as one that is
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


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Return `built_once(name, make)`: a folder that `make` fills, one for all workers of a run. Only to be read."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def obtain(name: str, make: Callable[[Path], None]) -> Path:
        folder, begun = shared / name, shared / f"{name}.partial"
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                shutil.rmtree(begun, ignore_errors=True)
                begun.mkdir()
                make(begun)
                begun.rename(folder)
        return folder

    return obtain


@pytest.fixture
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of speed take a fraction of their time: for tests of what is measured, not of the figures."""
    monkeypatch.setattr(throughput, "_WARMUP_SECONDS", 0.02)
    monkeypatch.setattr(throughput, "_STREAM_SECONDS", 0.2)
    monkeypatch.setattr(engine_timing, "_REPEATS", 5)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers files, as `--dist loadfile` does, or a folder whose framework takes seconds to import."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _work_unit(nodeid)

    return Scheduling(config, log)


def _work_unit(nodeid: str) -> str:
    """Return the file or folder whose tests run in one process."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in _TOGETHER if file.startswith(folder)), file)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # the longest first, so that no worker is left with one at the end
        weights: Counter[str] = Counter()
        for item in items:
            weights[_work_unit(item.nodeid)] += _SLOW if "slow" in item.keywords else 1
        items.sort(key=lambda item: -weights[_work_unit(item.nodeid)])
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
