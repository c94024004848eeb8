"""CUDA graphs by stream capture: a sequence of launches captured once, replayed as one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from yolotrt_core.errors import StageError


def available() -> bool:
    """Check for cuda-python, which can capture graphs (pycuda cannot)."""
    try:
        return importlib.util.find_spec("cuda.bindings.driver") is not None
    except ModuleNotFoundError:  # find_spec imports the parent packages
        return False


class Graph:
    """A captured sequence of work on one stream. The context must be current around every call.

    It keeps the addresses of its capture: capture again when one changes.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what `enqueue` puts on a stream, without running it.

        Args:
            stream: handle of a stream other than the default. enqueue: only asynchronous work on that stream, run
                once before to complete all setup.

        Raises:
            StageError: the work cannot be captured.
        """
        from cuda.bindings import driver

        self._driver: Any = driver
        # Thread-local: allocations of other threads would break a global capture.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(stream, mode))
        try:
            enqueue()
        finally:
            ended = driver.cuStreamEndCapture(stream)
        graph = _checked(ended)
        try:
            self._executable: Any = _checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)
        self._stream = driver.CUstream(stream)

    def launch(self) -> None:
        """Enqueue the whole sequence on its stream."""
        _checked(self._driver.cuGraphLaunch(self._executable, self._stream))

    def close(self) -> None:
        """Free the graph; its work must be done."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._driver.cuGraphExecDestroy(executable)


def _checked(result: tuple[Any, ...]) -> Any:
    if int(result[0]):
        raise StageError(f"CUDA graph: {result[0].name}")
    return result[1] if len(result) > 1 else None
