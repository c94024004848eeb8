"""One batch in flight: an execution context with its stream, buffers and captured graphs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import StageError
from yolotrt_core.types import Detections, Selection, without_channels
from yolotrt_tensorrt.cuda import graph as cuda_graph
from yolotrt_tensorrt.cuda.device import DeviceMemory, Gpu, PinnedPool
from yolotrt_tensorrt.cuda.graph import Graph
from yolotrt_tensorrt.cuda.kernels_loader import Kernel
from yolotrt_tensorrt.runtime.device_structs import (
    FRAME,
    REQUEST,
    pack_class_mask,
    pack_frame,
    pack_request,
    source_size,
)
from yolotrt_tensorrt.runtime.frame_upload import CopyThreads, FrameUploader, Uploaded
from yolotrt_tensorrt.runtime.jpeg_decoder import DeviceImage
from yolotrt_tensorrt.runtime.loaded_engine import ELEMENT_BYTES, LoadedEngine, Tensor
from yolotrt_tensorrt.runtime.mask_drawing import MaskDrawing
from yolotrt_tensorrt.runtime.postprocess import Decoding, Inputs

if TYPE_CHECKING:
    import tensorrt
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_MAX_TRIES = 3
STEPS = ("upload", "preprocess", "infer", "postprocess", "download")


@dataclass(frozen=True, slots=True)
class Program:
    """Kernels that read one output of the engine, its number of classes, and the output of prototypes (or empty).

    With `rows_last` that output is (B, columns, rows).
    """

    output: str
    classes: int
    kernels: dict[str, Kernel]
    prototypes: str = ""
    rows_last: bool = False


@dataclass(frozen=True, slots=True)
class SlotResources:
    """Resources shared by all slots of a session."""

    gpu: Gpu
    plan: LoadedEngine
    letterbox: Kernel
    pool: PinnedPool
    copy_threads: CopyThreads


@dataclass(slots=True)
class _Recorded:
    """Cache entry of a graph: its key, the graph (None before the second run), and the number of failures."""

    key: tuple[Any, ...]
    graph: Graph | None = None
    failed: int = 0


class ExecutionSlot:
    """One batch in flight. Used by one thread at a time, with the GPU's context current.

    Attributes:
        graph: how the engine is launched: `capture` (our captured graph), `library` (the library's), `none`.
    """

    def __init__(self, shared: SlotResources, *, use_graph: bool) -> None:
        gpu, plan = shared.gpu, shared.plan
        self._gpu, self._plan, self._letterbox, self._pool = gpu, plan, shared.letterbox, shared.pool
        self._stream: Any = gpu.stream()
        # The library itself would create blocking streams, see `Gpu.stream`. These must outlive the context.
        self._side_streams: list[Any] = [gpu.stream() for _ in range(plan.side_streams)]
        self._context: tensorrt.IExecutionContext
        self._context, self.graph = self._new_context(use_graph)
        self._shape: Shape | None = None
        self._input = DeviceMemory(gpu)
        self._outputs = {name: DeviceMemory(gpu) for name in plan.outputs}
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        self._uploader = FrameUploader(gpu, shared.pool, shared.copy_threads)
        self._block = DeviceMemory(gpu)
        self._host_block: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._decodings: dict[int, Decoding] = {}
        self._recorded: dict[str, _Recorded] = {}
        self._running: tuple[Decoding, Inputs] | None = None
        self._sizes: list[tuple[int, int]] = []  # of the source images of the batch
        # Content and address of the block; the version changes with its host or device address.
        self._block_version = 0
        self._described: tuple[Any, ...] = ()
        self._inputs: Inputs | None = None
        self.computed: Any = gpu.cuda.Event(gpu.cuda.event_flags.DISABLE_TIMING)

    def _new_context(self, use_graph: bool) -> tuple[tensorrt.IExecutionContext, str]:
        """Create a context that uses this slot's streams only."""
        context: tensorrt.IExecutionContext
        context, graph = self._recorded_context(use_graph)
        if self._side_streams:
            context.set_aux_streams([stream.handle for stream in self._side_streams])
        return context, graph

    def _recorded_context(self, use_graph: bool) -> tuple[tensorrt.IExecutionContext, str]:
        """Prefer our capture, which includes the kernels around the engine."""
        plan = self._plan
        if use_graph and cuda_graph.available():
            context = plan.new_context(own_graph=False)
            ask = getattr(context, "is_stream_capturable", None)
            if ask is None or ask(self._stream.handle):
                return context, "capture"
            _log.debug("the engine does not support external stream capture")
        if use_graph and plan.captures_itself:
            return plan.new_context(own_graph=True), "library"
        return plan.new_context(own_graph=False), "none"

    def bind(self, shape: Shape) -> None:
        """Allocate and bind buffers for an input shape of one of the engine's profiles."""
        if shape == self._shape:
            return
        self._shape = self._inputs = None
        plan, stream = self._plan, self._stream.handle
        plan.set_shape(self._context, plan.profile_for(shape), shape, stream)
        self._input.reserve(int(np.prod(shape)) * ELEMENT_BYTES[plan.image.dtype])
        plan.set_address(self._context, plan.image.name, self._input.address)
        for name, tensor in plan.outputs.items():
            resolved = tuple(int(d) for d in self._context.get_tensor_shape(name))
            self._output_shapes[name] = resolved
            self._outputs[name].reserve(int(np.prod(resolved)) * ELEMENT_BYTES[tensor.dtype])
            plan.set_address(self._context, name, self._outputs[name].address)
        self._drop_decodings()
        self._shape = shape

    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        """Run one batch of network inputs; see `Session.infer`."""
        self.bind(images.shape)
        data = np.ascontiguousarray(_to_dtype(images, self._plan.image.dtype))
        self._gpu.cuda.memcpy_htod_async(self._input.address, data, self._stream)
        self._launch("infer", (self._shape, self._input.address), self._execute)
        raw = {}
        for name, tensor in self._plan.outputs.items():
            kind = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[tensor.dtype]
            raw[name] = np.empty(self._output_shapes[name], kind)
            self._gpu.cuda.memcpy_dtoh_async(raw[name], self._outputs[name].address, self._stream)
        self._stream.synchronize()
        return {name: _to_float32(array) for name, array in raw.items()}

    def prepare(
        self, frames: Sequence[NDArray[np.uint8] | DeviceImage], program: Program, selection: Selection, shape: Shape
    ) -> None:
        """Start a batch with the upload of its frames; `launch` does the rest.

        Args:
            frames: at most shape[0]. shape: of the network input.
        """
        self._running = self._prepare(frames, program, selection, shape)

    def launch(self, after: Any = None) -> None:
        """Start everything after the upload, including the download of boxes; `collect` waits for it.

        Args:
            after: event of another slot that the GPU waits for first, or None.
        """
        decoding, inputs = self._require_prepared()
        if after is not None:
            self._stream.wait_for_event(after)
        key = (self._shape, id(decoding), decoding.version, self._block_version, self._input.address)
        self._launch("detect", key, lambda: self._enqueue(decoding, inputs))
        self.computed.record(self._stream)

    def _require_prepared(self) -> tuple[Decoding, Inputs]:
        if self._running is None:
            raise RuntimeError("`prepare` was not called")
        return self._running

    def recover(self) -> None:
        """Recover from a failed run: wait for started work and free all buffers."""
        self._running = None
        try:
            self._stream.synchronize()
        except self._gpu.cuda.Error as err:
            _log.debug("after a failed batch: %s", err)
        self._free_buffers()

    def collect(self, images: int, max_det: int) -> list[Detections]:
        """Wait for the launched work and return the boxes of its frames."""
        self._stream.synchronize()
        decoding, inputs = self._require_prepared()
        self._running = None
        return decoding.collect(self._stream, inputs, self._sizes[:images], max_det)

    def time_steps(
        self,
        frames: Sequence[NDArray[np.uint8] | DeviceImage],
        program: Program,
        selection: Selection,
        shape: Shape,
    ) -> dict[str, float]:
        """Run one batch step by step and return the GPU milliseconds of each of `STEPS`.

        Steps are launched separately, without a common graph: their sum exceeds the time of a detection.
        """
        event = self._gpu.cuda.Event
        marks = [event() for _ in range(len(STEPS) + 1)]
        marks[0].record(self._stream)
        decoding, inputs = self._prepare(frames, program, selection, shape)
        marks[1].record(self._stream)
        self._enqueue_letterbox(inputs)
        marks[2].record(self._stream)
        self._launch("infer", (self._shape, self._input.address), self._execute)
        marks[3].record(self._stream)
        decoding.enqueue_kernels(self._stream, inputs)
        marks[4].record(self._stream)
        decoding.enqueue_download(self._stream)
        marks[5].record(self._stream)
        self._stream.synchronize()
        return {step: a.time_till(b) for step, a, b in zip(STEPS, marks[:-1], marks[1:], strict=True)}

    def time_engine(self, shape: Shape, repeats: int) -> list[float]:
        """Return GPU milliseconds of the engine alone, per launch, after a warm-up."""
        self.bind(shape)
        event = self._gpu.cuda.Event
        for _ in range(10):
            self._launch("infer", (self._shape, self._input.address), self._execute)
        marks = [event() for _ in range(repeats + 1)]
        marks[0].record(self._stream)
        for mark in marks[1:]:
            self._launch("infer", (self._shape, self._input.address), self._execute)
            mark.record(self._stream)
        self._stream.synchronize()
        return [a.time_till(b) for a, b in itertools.pairwise(marks)]

    def _prepare(
        self,
        frames: Sequence[NDArray[np.uint8] | DeviceImage],
        program: Program,
        selection: Selection,
        shape: Shape,
    ) -> tuple[Decoding, Inputs]:
        """Start the upload, and fill the parameter block of the kernels."""
        self.bind(shape)
        decoding = self._decoding(program)
        decoding.reserve(selection.max_det, multi_label=selection.multi_label)
        target = without_channels(shape, self._plan.layout)[1:]
        uploaded = self._uploader.upload(frames, target, self._stream)
        self._sizes = [source_size(frame.shape) for frame in frames]
        # Frames of a camera have one size and address: the block is already written.
        classes = tuple(selection.classes)  # a list may change in place
        described = (program, selection, classes, shape, [f.shape for f in frames], uploaded)
        if self._inputs is None or described != self._described:
            self._inputs = self._write_block(frames, uploaded, program, selection, shape)
            self._described = described
        return decoding, self._inputs

    def _write_block(
        self,
        frames: Sequence[NDArray[np.uint8] | DeviceImage],
        uploaded: Sequence[Uploaded],
        program: Program,
        selection: Selection,
        shape: Shape,
    ) -> Inputs:
        target = without_channels(shape, self._plan.layout)[1:]
        parts = [pack_request(len(frames), selection)]
        parts += [pack_frame(f.shape, u.address, target, u.packed) for f, u in zip(frames, uploaded, strict=True)]
        frames_at = REQUEST.itemsize
        mask_at = frames_at + FRAME.itemsize * shape[0]
        mask = pack_class_mask(tuple(selection.classes), program.classes)
        if self._host_block.size < mask_at + len(mask):
            self._host_block = self._pool.array((mask_at + len(mask),))
            self._block.reserve(self._host_block.size)
            self._block_version += 1
        data = b"".join(parts)
        self._host_block[: len(data)] = np.frombuffer(data, np.uint8)
        self._host_block[mask_at : mask_at + len(mask)] = np.frombuffer(mask, np.uint8)
        block = self._block.address
        raw = self._outputs[program.output].address
        prototypes = self._outputs[program.prototypes].address if program.prototypes else 0
        return Inputs(block, block + frames_at, block + mask_at, raw, prototypes)

    def _decoding(self, program: Program) -> Decoding:
        held = self._decodings.get(id(program))
        if held is None:
            masks = None
            if program.prototypes:
                masks = MaskDrawing(self._pool, program.kernels, self._resolved(program.prototypes))
            output = self._resolved(program.output)
            if program.rows_last:
                batch, columns, rows = output.shape
                output = replace(output, shape=(batch, rows, columns))
            held = Decoding(self._gpu, self._pool, program.kernels, output, masks)
            self._decodings[id(program)] = held
        return held

    def _resolved(self, name: str) -> Tensor:
        """Return an output with its shape for the bound input."""
        return Tensor(name, self._plan.outputs[name].dtype, self._output_shapes[name])

    def _enqueue(self, decoding: Decoding, inputs: Inputs) -> None:
        self._enqueue_letterbox(inputs)
        self._execute()
        decoding.enqueue(self._stream, inputs)

    def _enqueue_letterbox(self, inputs: Inputs) -> None:
        assert self._shape is not None  # bound by `_prepare`
        batch, height, width = without_channels(self._shape, self._plan.layout)
        self._gpu.upload_pinned(self._block.address, self._host_block, self._stream)
        grid = ((width + 31) // 32, (height + 7) // 8, batch)
        self._letterbox(grid, self._stream, inputs.request, inputs.frames, self._input.address, height, width)

    def _execute(self) -> None:
        self._plan.execute(self._context, self._stream.handle)

    def _launch(self, name: str, key: tuple[Any, ...], enqueue: Callable[[], None]) -> None:
        """Run `enqueue`, or from its second call with the same key its captured graph."""
        held = self._recorded.get(name)
        if self.graph == "capture" and held is not None and held.key == key:
            if held.graph is None:
                held.graph = self._record(held, enqueue)
            if held.graph is not None:
                held.graph.launch()
                return
        elif self.graph == "capture":
            if held is not None and held.graph is not None:
                held.graph.close()
            self._recorded[name] = _Recorded(key)
        enqueue()

    def _record(self, recorded: _Recorded, enqueue: Callable[[], None]) -> Graph | None:
        if not self._gpu.recording.acquire(blocking=False):  # retried with the next batch
            return None
        try:
            return Graph(self._stream.handle, enqueue)
        except (StageError, MemoryError, self._gpu.cuda.Error) as err:
            recorded.failed += 1
            # A device-wide synchronization of another thread breaks a capture: the next may succeed.
            if recorded.failed < _MAX_TRIES:
                _log.debug("capturing again: %s", err)
            else:
                _log.warning("running without a CUDA graph: %s", err)
                self.graph = "none"
            return None
        finally:
            self._gpu.recording.release()

    def _drop_decodings(self) -> None:
        for recorded in self._recorded.values():
            if recorded.graph is not None:
                recorded.graph.close()
        self._recorded.clear()
        for decoding in self._decodings.values():
            decoding.close()
        self._decodings.clear()

    def close(self) -> None:
        """Wait for the GPU and free all memory."""
        self.recover()
        self._context = None
        self._side_streams.clear()

    def _free_buffers(self) -> None:
        self._shape = self._inputs = None
        self._drop_decodings()
        self._uploader.close()
        for memory in (self._input, self._block, *self._outputs.values()):
            memory.close()
        self._host_block = np.empty(0, np.uint8)


def _to_dtype(images: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "float32":
        return images
    if dtype == "float16":
        return images.astype(np.float16)
    bits = np.ascontiguousarray(images).view(np.uint32)  # NumPy has no bfloat16; ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)
