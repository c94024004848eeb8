"""Make an onnxruntime engine: the typed ONNX itself, proven to load here."""

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
# onnxruntime prints what it also raises; 4 keeps only what ends the process.
_FATAL = 4
_CODES = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def build(model: OnnxModel, request: BuildRequest, out: Path) -> EngineSpec:
    """Copy the ONNX to `out/model.onnx` and load it from there.

    The original graph is kept, not onnxruntime's optimised one: that is bound to one release and
    one processor type, and loading (20 to 60 ms for YOLOv5n) optimises anyway.

    Raises:
        StageError: onnxruntime does not load it, or its inputs or outputs are not the spec's.
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
            raise StageError(f"the ONNX has {kind} {names}, its spec says {expected}")
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
        threads: of one inference; 0 takes one for each physical core.

    Raises:
        StageError: the file is missing, damaged, or needs an operator onnxruntime does not have.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    # Threads that spin while they wait take the cores from decoding, letterbox and other sessions: on two
    # busy cores they double the time of an inference.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as err:  # its exception classes have no common base
        raise StageError(f"onnxruntime cannot load `{path.name}`: {reason(err)}") from err


def reason(err: BaseException) -> str:
    """Return what onnxruntime says, in one line, without its own prefix of codes."""
    return _CODES.sub("", " ".join(str(err).split()))[:300] or type(err).__name__
