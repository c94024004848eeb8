"""CUDA graphs by stream capture: a sequence of launches recorded once, replayed as one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from yolotrt_core.errors import StageError


def available() -> bool:
    """Say whether cuda-python, which records graphs (pycuda cannot), is installed."""
    try:
        return importlib.util.find_spec("cuda.bindings.driver") is not None
    except ModuleNotFoundError:  # find_spec imports the parent packages
        return False


class Graph:
    """A recorded sequence of work on one stream. The context must be current around every call.

    Everything in it keeps the addresses it was recorded with: record again when one changes.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Record what `enqueue` puts on a stream; nothing of it runs.

        Args:
            stream: handle of a stream that is not the default one. enqueue: only asynchronous work on
                that stream, run once before so that nothing is left to be set up.

        Raises:
            StageError: something in it cannot be recorded.
        """
        from cuda.bindings import driver

        self._driver: Any = driver
        # Thread-local: other threads may allocate meanwhile, which would break a global capture.
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
        """Put the whole sequence on its stream."""
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
