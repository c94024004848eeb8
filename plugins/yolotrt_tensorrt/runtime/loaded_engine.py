"""A plan loaded onto a GPU: its tensors, profiles and execution contexts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import StageError, UsageError, os_error_reason
from yolotrt_core.plugin.stages import SideCache
from yolotrt_core.types import CHANNEL_COUNTS, EngineSpec, Layout, channels_of, layout_of
from yolotrt_tensorrt.cuda.device import DeviceMemory, Gpu
from yolotrt_tensorrt.library import Library, Messages, check_plan

if TYPE_CHECKING:
    import tensorrt

_log = logging.getLogger(__name__)

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_RUNTIME_CACHE = "runtime.cache"
_OWN = "use an engine that `build` created"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; -1 is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class LoadedEngine:
    """An engine on a GPU. The context must be current around every call.

    Attributes:
        image: the one input, (B, C, H, W) or (B, H, W, C). outputs: by name.
        profiles: (min, opt, max) shapes of the input per optimization profile; equal if static.
        context_bytes: device memory per execution context.
    """

    def __init__(self, path: Path, spec: EngineSpec, library: Library, gpu: Gpu, side_cache: SideCache) -> None:
        trt = library.trt
        self._library, self._gpu, self._side_cache = library, gpu, side_cache
        try:
            data = path.read_bytes()
        except OSError as err:
            raise UsageError(f"cannot read the engine `{path}`: {os_error_reason(err)}") from err
        with library.collecting() as messages:
            self._runtime: tensorrt.Runtime = trt.Runtime(library.logger)
            check_plan(library, self._runtime, data)
            self.engine: tensorrt.ICudaEngine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise library.failure(f"load `{path.name}` on {gpu.name}", messages, "rebuild it on this machine")
        tensors = [self._tensor(self.engine.get_tensor_name(i)) for i in range(self.engine.num_io_tensors)]
        modes = {t.name: self.engine.get_tensor_mode(t.name) for t in tensors}
        inputs = [t for t in tensors if modes[t.name] == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or channels_of(inputs[0].shape) not in CHANNEL_COUNTS:
            found = ", ".join(f"`{t.name}` {t.shape}" for t in inputs) or "none"
            raise UsageError(
                f"expected one input of (B, C, H, W) or (B, H, W, C) with 1, 3 or 4 channels, found {found}", hint=_OWN
            )
        self.image = inputs[0]
        self.outputs = {t.name: t for t in tensors if modes[t.name] == trt.TensorIOMode.OUTPUT}
        self.profiles = self._profiles()
        self.context_bytes = int(getattr(self.engine, "device_memory_size_v2", 0))
        self._context_memory: list[DeviceMemory] = []
        self._cache: tensorrt.IRuntimeCache = None
        self._cache_sha256 = ""
        self._cache_material: Mapping[str, str] = {
            "gpu": gpu.name,
            "library": str(library),
            "driver": gpu.driver,
            "engine_sha256": hashlib.sha256(data).hexdigest(),
        }

    def _tensor(self, name: str) -> Tensor:
        code = self.engine.get_tensor_dtype(name).name
        if code not in _DTYPES:
            raise UsageError(f"tensor `{name}` is {code}, expected {', '.join(_DTYPES)}")
        return Tensor(name, _DTYPES[code], tuple(int(d) for d in self.engine.get_tensor_shape(name)))

    def _profiles(self) -> list[tuple[tuple[int, ...], ...]]:
        if self.is_static:
            return [(self.image.shape,) * 3]
        profiles = []
        for index in range(self.engine.num_optimization_profiles):
            low, best, high = self.engine.get_tensor_profile_shape(self.image.name, index)
            profiles.append(tuple(tuple(int(d) for d in shape) for shape in (low, best, high)))
        return profiles

    @property
    def layout(self) -> Layout:
        """Layout of the input."""
        return layout_of(self.image.shape)

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return self.image.shape[3 if self.layout == "nhwc" else 1]

    @property
    def is_static(self) -> bool:
        """Whether the input has a single shape."""
        return -1 not in self.image.shape

    @property
    def captures_itself(self) -> bool:
        """Whether the library can capture and replay a CUDA graph itself (TensorRT-RTX)."""
        return self._library.has("IRuntimeConfig.cuda_graph_strategy", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE")

    def profile_for(self, shape: tuple[int, ...]) -> int:
        """Return the first profile that accepts an input shape.

        Raises:
            UsageError: no profile accepts it; lists the accepted shapes.
        """
        for index, (low, _, high) in enumerate(self.profiles):
            if len(shape) == 4 and all(a <= d <= b for a, d, b in zip(low, shape, high, strict=True)):
                return index
        ranges = sorted({f"{low}" if low == high else f"{low} to {high}" for low, _, high in self.profiles})
        raise UsageError(f"the engine accepts images of {' or '.join(ranges)}, found {shape}")

    @property
    def side_streams(self) -> int:
        """Number of auxiliary streams of an execution context."""
        return int(self.engine.num_aux_streams)

    def new_context(self, *, own_graph: bool) -> tensorrt.IExecutionContext:
        """Create an execution context.

        Args:
            own_graph: let the library capture and replay a CUDA graph itself, where supported.

        Raises:
            MemoryError: the GPU is out of memory. StageError: any other failure.
        """
        with self._library.collecting() as messages:
            context = self._make_context(own_graph=own_graph, own_memory=False)
            if context is None and any("USER_MANAGED" in text for text in messages.errors):
                # Built for external capture (TensorRT-RTX, REQUIRE_USER_ALLOCATION): we must provide its memory.
                context = self._make_context(own_graph=own_graph, own_memory=True)
        if context is None:
            raise self._failure("create an execution context", messages)
        return context

    def _failure(self, doing: str, messages: Messages) -> Exception:
        if any("memory" in text.lower() for text in messages.errors):
            return MemoryError(messages.last_error())
        return self._library.failure(doing, messages)

    def _make_context(self, *, own_graph: bool, own_memory: bool) -> tensorrt.IExecutionContext:
        if not hasattr(self.engine, "create_runtime_config"):
            return self.engine.create_execution_context()
        trt = self._library.trt
        config = self.engine.create_runtime_config()
        if hasattr(config, "cuda_graph_strategy"):
            strategy = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if own_graph else strategy.DISABLED
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Lazy kernels are compiled in the background: times drift, and a captured graph would keep the slow ones.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._library.has("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache"):
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                kept = self._side_cache.load(_RUNTIME_CACHE, self._cache_material)
                if kept and self._cache.deserialize(kept):
                    self._cache_sha256 = hashlib.sha256(kept).hexdigest()
            config.set_runtime_cache(self._cache)
        if not own_memory:
            return self.engine.create_execution_context(config)
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context = self.engine.create_execution_context(config)
        if context is not None:
            memory = DeviceMemory(self._gpu, max(1, self.context_bytes))
            context.set_device_memory(memory.address, memory.size)
            self._context_memory.append(memory)
        return context

    def save_cache(self) -> None:
        """Cache just-in-time compiled kernels for the next start."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        digest = hashlib.sha256(data).hexdigest()
        if digest != self._cache_sha256:
            self._side_cache.save(_RUNTIME_CACHE, self._cache_material, data)
            self._cache_sha256 = digest

    def execute(self, context: tensorrt.IExecutionContext, stream: int) -> None:
        """Enqueue one inference on a stream.

        Raises:
            MemoryError: the GPU is out of memory. StageError: TensorRT failed; includes its message.
        """
        if context.execute_async_v3(stream):
            return
        with self._library.collecting() as messages:
            if context.execute_async_v3(stream):  # run again to collect messages, which the hot path skips
                return
        raise self._failure("run the engine", messages)

    def set_shape(self, context: tensorrt.IExecutionContext, profile: int, shape: tuple[int, ...], stream: int) -> None:
        """Set profile and input shape, which determine the output shapes.

        Raises:
            StageError: TensorRT refuses.
        """
        with self._library.collecting() as messages:
            done = True
            if context.active_optimization_profile != profile:
                done = context.set_optimization_profile_async(profile, stream)
            if not (done and context.set_input_shape(self.image.name, shape)) or context.infer_shapes():
                raise self._library.failure(f"run with images of {shape}", messages)

    def set_address(self, context: tensorrt.IExecutionContext, name: str, address: int) -> None:
        """Set the device address of a tensor."""
        if not context.set_tensor_address(name, address):
            raise StageError(f"{self._library} refuses the address of tensor `{name}`")

    def close(self) -> None:
        """Unload the engine, after its contexts."""
        self._cache = self.engine = self._runtime = None
        for memory in self._context_memory:
            memory.close()
