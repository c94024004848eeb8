"""Builder `onnxruntime`: the same engines on a CPU, for hosts without a GPU and for checking."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import ClassVar

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import ONNX_FILE, Availability, OnnxContents, Session, SideCache
from yolotrt_core.types import BuildRequest, Calibration, EngineSpec, OnnxModel, Precision
from yolotrt_onnxruntime.options import OnnxRuntimeOptions

# All install the module `onnxruntime`.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


class OnnxRuntimeBuilder:
    """Makes a checked, portable ONNX file and runs it with onnxruntime's CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnxruntime.builder",)
    session_sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnxruntime", "yolotrt_core.inference.input_shapes")
    Options: ClassVar[type] = OnnxRuntimeOptions
    engine_file: ClassVar[str] = ONNX_FILE
    # bf16 is missing: the CPU provider (1.20 to 1.32) has no bfloat16 convolution.
    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32", "fp16", "int8", "fp8"})
    priority: ClassVar[int] = 50

    def available(self) -> Availability:
        return tools_available(("onnxruntime",))

    def runnable(self) -> Availability:
        return self.available()

    def fingerprint(self, options: OnnxRuntimeOptions) -> Mapping[str, str]:
        for name in _DISTRIBUTIONS:
            try:
                return {"onnxruntime": metadata.version(name)}
            except metadata.PackageNotFoundError:
                continue
        return {}

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
        """Tell what an ONNX file declares, any that other builders take included; None without the onnx package."""
        if util.find_spec("onnx") is None:
            return None
        from yolotrt_onnxruntime import onnx_inspector

        return onnx_inspector.contents(onnx)
