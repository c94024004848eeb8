"""Builder `onnxruntime`: the same engines on a CPU, for hosts without a GPU and for checking."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import ONNX_FILE, Builder, OnnxContents, Session, SideCache
from yolotrt_core.types import BuildRequest, Calibration, EngineSpec, OnnxModel, Precision
from yolotrt_onnxruntime.options import OnnxRuntimeOptions


class OnnxRuntimeBuilder(Builder):
    """Writes a checked, portable ONNX file and runs it with onnxruntime's CPU provider."""

    name = "onnxruntime"
    title = "ONNX Runtime builder"
    sources = ("yolotrt_onnxruntime.builder",)
    session_sources = ("yolotrt_onnxruntime", "yolotrt_core.inference.input_shapes")
    Options = OnnxRuntimeOptions
    engine_file = ONNX_FILE
    # bf16 is missing: the CPU provider (1.20 to 1.32) has no bfloat16 convolution.
    precisions: frozenset[Precision] = frozenset({"fp32", "fp16", "int8", "fp8"})
    priority = 50
    is_reference_runtime = True
    requires = ("onnxruntime",)

    def preflight(self, request: BuildRequest, options: OnnxRuntimeOptions) -> None:
        if request.precision not in self.precisions:
            raise StageError(
                f"onnxruntime's CPU provider cannot run {request.precision}: it has no such convolution",
                hint="use `--precision fp16` or `--precision fp32`, or `--builder tensorrt`",
            )

    def build(
        self,
        model: OnnxModel,
        calibration: Calibration | None,
        request: BuildRequest,
        options: OnnxRuntimeOptions,
        out: Path,
        side_cache: SideCache,
    ) -> EngineSpec:
        from yolotrt_onnxruntime import builder

        return builder.build(model, request, out)

    def open(self, engine: Path, spec: EngineSpec, options: OnnxRuntimeOptions, side_cache: SideCache) -> Session:
        from yolotrt_onnxruntime.session import OnnxRuntimeSession

        return OnnxRuntimeSession(engine, spec, options.threads)

    def contents(self, onnx: Path) -> OnnxContents | None:
        """Read what any ONNX file declares; None without the onnx package."""
        if util.find_spec("onnx") is None:
            return None
        from yolotrt_onnxruntime import onnx_inspector

        return onnx_inspector.contents(onnx)
