"""Build an onnxruntime engine: the typed ONNX itself, after a test load."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnxruntime

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import ONNX_FILE
from yolotrt_core.types import BuildRequest, EngineSpec, OnnxModel

PROVIDER = "CPUExecutionProvider"
# onnxruntime also prints what it raises; 4 logs fatal errors only.
_FATAL = 4
_CODES = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def build(model: OnnxModel, request: BuildRequest, out: Path) -> EngineSpec:
    """Copy the ONNX to `out/model.onnx` and load it from there.

    The engine is the original graph: onnxruntime's optimised graph is bound to one release and processor type, and
    loading (20 to 60 ms for YOLOv5n) optimises again.

    Raises:
        StageError: onnxruntime cannot load it, or its inputs or outputs differ from the spec.
    """
    engine = out / ONNX_FILE
    shutil.copyfile(model.path, engine)
    session = load(engine)
    for kind, found, specs in (
        ("inputs", session.get_inputs(), model.spec.inputs),
        ("outputs", session.get_outputs(), model.spec.outputs),
    ):
        names, expected = [value.name for value in found], [spec.name for spec in specs]
        if names != expected:
            raise StageError(f"the ONNX has {kind} {names}, expected {expected} from its spec")
    return EngineSpec(
        model=model.spec,
        precision=request.precision,
        builder="onnxruntime",
        tools={"module": "onnxruntime", "version": onnxruntime.__version__, "provider": PROVIDER},
        profiles=request.profiles,
        onnx_sha256=model.sha256,
    )


def load(path: Path, threads: int = 0) -> Any:
    """Open an ONNX file with the CPU provider.

    Args:
        threads: per inference; 0 uses one per physical core.

    Raises:
        StageError: the file is missing, corrupted, or needs an unsupported operator.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    # Spinning threads compete with decoding, letterbox and other sessions: on two busy cores they double the time
    # of an inference.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as err:  # its exception classes have no common base
        raise StageError(f"onnxruntime cannot load `{path.name}`: {reason(err)}") from err


def reason(err: BaseException) -> str:
    """Return onnxruntime's message in one line, without its prefix of error codes."""
    return _CODES.sub("", " ".join(str(err).split()))[:300] or type(err).__name__
