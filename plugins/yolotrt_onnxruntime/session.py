"""Run an ONNX file as an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference.input_shapes import refuse_unfit
from yolotrt_core.plugin.stages import Session
from yolotrt_core.types import EngineSpec
from yolotrt_onnxruntime.builder import load, reason

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxRuntimeSession(Session):
    """An ONNX file ready to run on the CPU; `infer` may be called from several threads at once.

    Accepts any ONNX with one float image input.

    Args:
        engine: the ONNX file. spec: its sidecar; the profiles limit the shapes.
        threads: per inference; 0 uses one per physical core.

    Raises:
        StageError: onnxruntime cannot load the file, or its input differs from the spec.
    """

    def __init__(self, engine: Path, spec: EngineSpec, threads: int = 0) -> None:
        self.spec = spec
        self._session: Any = load(engine, threads)
        found = [(value.name, value.type) for value in self._session.get_inputs()]
        expected = [tensor.name for tensor in spec.model.inputs]
        if [name for name, _ in found] != expected or len(found) != 1 or found[0][1] not in _FLOATS:
            shown = ", ".join(f"`{name}` {kind}" for name, kind in found)
            raise StageError(
                f"`{engine.name}` has the inputs {shown}; expected one float tensor, {expected} in the spec"
            )
        self._dtype = _FLOATS[found[0][1]]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see `yolotrt_core.plugin.stages.Session.infer`.

        Raises:
            UsageError: an unsupported dtype or shape, or the session is closed.
            StageError: onnxruntime failed.
        """
        session = self._session
        if session is None:
            raise UsageError("the engine is closed", hint="open it again")
        refuse_unfit(images, self.spec)
        feed = {self.spec.model.inputs[0].name: np.ascontiguousarray(images, self._dtype)}
        try:
            arrays = session.run(self._outputs, feed)
        except Exception as err:  # onnxruntime's exception classes have no common base
            raise StageError(f"onnxruntime failed: {reason(err)}") from err
        return {
            name: array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array
            for name, array in zip(self._outputs, arrays, strict=True)
        }

    def close(self) -> None:
        """Free the network; an `infer` running in another thread completes."""
        self._session = None
