"""Runs TensorRT plans on an NVIDIA GPU: from network inputs, or from host frames to boxes.

A session is thread-safe. Batches run in slots (`slot.py`), by default three, so that one is uploaded while others
compute; `slot_pool.py` assigns them.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference.input_shapes import shape_text
from yolotrt_core.media.frames import Frame, Nv12Frame
from yolotrt_core.plugin.stages import DeviceProgram, Session, SideCache
from yolotrt_core.types import Detections, EngineSpec, Selection, with_channels, without_channels
from yolotrt_tensorrt.cuda.device import Gpu, PageLock, PinnedMemoryError, PinnedPool, as_stage_error, open_gpu
from yolotrt_tensorrt.cuda.kernels_loader import load_kernels
from yolotrt_tensorrt.library import check_engine
from yolotrt_tensorrt.runtime.frame_upload import CopyThreads, check_frames
from yolotrt_tensorrt.runtime.jpeg_decoder import DeviceImage, JpegDecoder, open_decoder
from yolotrt_tensorrt.runtime.loaded_engine import ELEMENT_BYTES, LoadedEngine
from yolotrt_tensorrt.runtime.slot import ExecutionSlot, Program, SlotResources
from yolotrt_tensorrt.runtime.slot_pool import BatchHandle, SlotLease, SlotPool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from yolotrt_tensorrt.options import TensorRTOptions

T = TypeVar("T")


def open_session(engine: Path, spec: EngineSpec, options: TensorRTOptions, side_cache: SideCache) -> EngineSession:
    """Load an engine onto the GPU and create one slot.

    Raises:
        StageError: no GPU or pycuda, another TensorRT or GPU, or out of memory.
    """
    gpu = open_gpu(options.device)
    library = check_engine(spec, options.device)
    with gpu.current():
        plan = LoadedEngine(engine, spec, library, gpu, side_cache)
    return EngineSession(gpu, plan, spec, options, side_cache)


class EngineSession(Session):
    """An engine ready to run; see `yolotrt_core.plugin.stages.Session`.

    Attributes:
        spec: the engine's spec. gpu: where it runs. plan: the loaded engine.
        detects: whether images have three channels, which the kernel of the letterbox writes.
    """

    locks_pages = is_timed = True

    def __init__(
        self, gpu: Gpu, plan: LoadedEngine, spec: EngineSpec, options: TensorRTOptions, side_cache: SideCache
    ) -> None:
        self.spec, self.gpu, self.plan = spec, gpu, plan
        self._options, self._side_cache = options, side_cache
        self.detects = plan.channels == 3
        self._pool = PinnedPool(gpu)
        letterbox = load_kernels(gpu, plan.image.dtype, side_cache, layout=plan.layout)["letterbox"]
        self._shared = SlotResources(gpu, plan, letterbox, self._pool, CopyThreads())
        self._programs: dict[DeviceProgram, Program] = {}
        self._loading = threading.Lock()
        # Batches that compute concurrently, oldest first: one more waits with uploaded frames. Otherwise all would
        # end together, and the GPU would idle until the next upload.
        self._computing: deque[Any] = deque(maxlen=max(1, options.in_flight - 1))
        self._order = threading.Lock()
        self._closed = False
        self._saved_for: set[tuple[int, ...]] = set()
        _, best, high = plan.profiles[0]
        self._max_images: int = high[0]
        self._jpegs: JpegDecoder | None = None
        self._jpegs_asked = False
        self._target: tuple[int, int] = without_channels(best, plan.layout)[1:]
        self._slots = SlotPool(self._create_slot(), options.in_flight)

    @property
    def graph(self) -> str:
        """How engines are launched: `capture`, `library` or `none`; see `ExecutionSlot.graph`."""
        return self._slots.graph

    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """Run one batch; see `yolotrt_core.plugin.stages.Session.infer`."""
        if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.ndim != 4:
            found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            expected = shape_text(with_channels("B", "H", "W", self.plan.layout, self.plan.channels))
            raise UsageError(f"expected float32 images of {expected}, found {found}")
        self.plan.profile_for(images.shape)

        def infer(slot: ExecutionSlot) -> Mapping[str, NDArray[np.float32]]:
            raw = slot.infer(images)
            self._save_cache(images.shape)
            return raw

        return self._run_on_slot(images.shape[0], infer)

    def submit(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> BatchHandle:
        """Start at most one batch of frames, which must not change until the result is available.

        Raises:
            UsageError: too many frames for one batch, or an invalid frame.
        """
        return self._start(check_frames(frames), program, selection)

    def _start(
        self, frames: Sequence[NDArray[np.uint8] | DeviceImage], program: DeviceProgram, selection: Selection
    ) -> BatchHandle:
        if not 1 <= len(frames) <= self._max_images:
            raise UsageError(f"one batch has 1 to {self._max_images} frames, found {len(frames)}")
        loaded = self._program(program)
        batch = self._max_images if self.plan.is_static else len(frames)
        shape = self._shape(batch)
        explain = functools.partial(self._explain, batch=batch)

        def start(slot: ExecutionSlot) -> BatchHandle:
            slot.prepare(frames, loaded, selection, shape)
            with self._order:
                full = len(self._computing) == self._computing.maxlen
                slot.launch(self._computing[0] if full else None)
                self._computing.append(slot.computed)
            handle = BatchHandle(self.gpu, self._slots, slot, frames, selection.max_det, explain)
            self._slots.transfer(slot, handle)
            return handle

        handle = self._run_on_slot(batch, start)
        if shape not in self._saved_for:
            handle.finish()
            with self.gpu.current():
                self._save_cache(shape)
        return handle

    def detect(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> list[Detections]:
        """Find objects on frames; see `yolotrt_core.plugin.stages.Session.detect`."""
        if 1 <= len(frames) <= self._max_images:
            return self.submit(frames, program, selection).result()
        return list(self.stream(frames, program, selection))

    def stream(self, frames: Iterable[Frame], program: DeviceProgram, selection: Selection) -> Iterator[Detections]:
        """Find objects on a stream of frames; see `yolotrt_core.plugin.stages.Session.stream`."""
        coming = iter(frames)
        waiting: deque[BatchHandle] = deque()
        failure: Exception | None = None
        more, seen = True, 0
        while more:
            batch: list[Frame] = []
            try:
                for frame in islice(coming, self._max_images):
                    batch.append(frame)
            except Exception as err:  # noqa: BLE001 - raised below, after the results of earlier frames
                failure, more = err, False
            more = more and len(batch) == self._max_images
            if batch:
                try:
                    waiting.append(self._start(check_frames(batch, seen), program, selection))
                except Exception as err:  # noqa: BLE001 - likewise
                    failure, more = err, False
            seen += len(batch)
            while waiting and (len(waiting) >= self._slots.capacity or not more):
                yield from waiting.popleft().result()
        if failure is not None:
            raise failure

    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """Return frame buffers that upload fastest; see `yolotrt_core.plugin.stages.Session`."""
        return [self._pool.array(shape) for _ in range(count)]

    def pinned_copy(self, frame: Frame) -> Frame:
        """Return a copy that uploads fastest; see `yolotrt_core.plugin.stages.Session`."""
        (source,) = check_frames([frame])
        if isinstance(source, DeviceImage):
            return source
        copy = self._pool.array(source.shape)
        np.copyto(copy, source)
        return Nv12Frame(copy) if isinstance(frame, Nv12Frame) else copy

    def page_lock(self, memory: NDArray[np.uint8]) -> PageLock:
        """Page-lock memory of another owner; see `yolotrt_core.plugin.stages.Session.page_lock`."""
        return PageLock(self.gpu, memory)

    @property
    def decodes_files(self) -> bool:
        """Whether `decode` decodes JPEG files on the GPU; see `yolotrt_core.plugin.stages.Session.decode`."""
        with self._loading:
            if not self._jpegs_asked and not self._closed:
                self._jpegs = open_decoder(self.gpu, self._pool)
            self._jpegs_asked = True
        return self._jpegs is not None

    def decode(self, files: Sequence[bytes]) -> Sequence[DeviceImage | None]:
        """Decode JPEG files on the GPU; see `yolotrt_core.plugin.stages.Session.decode`."""
        if not self.decodes_files or self._jpegs is None:
            return [None] * len(files)
        return self._jpegs.decode(files)

    def time_steps(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> dict[str, float]:
        """Return the GPU milliseconds of each step for one batch of frames; see `ExecutionSlot.time_steps`."""
        taken = check_frames(frames)
        loaded = self._program(program)
        batch = self._max_images if self.plan.is_static else len(frames)
        return self._run_on_slot(batch, lambda slot: slot.time_steps(taken, loaded, selection, self._shape(batch)))

    def time_engine(self, batch: int, repeats: int) -> list[float]:
        """Return GPU milliseconds of the engine alone, for each of `repeats` runs after a warm-up."""
        return self._run_on_slot(batch, lambda slot: slot.time_engine(self._shape(batch), repeats))

    def _run_on_slot(self, batch: int, work: Callable[[ExecutionSlot], T]) -> T:
        """Run work that needs a slot, with the GPU's context current.

        Not a context manager: an interrupt at the end of its `__enter__` would leave without its `__exit__`.

        Args:
            batch: number of images. work: may transfer the slot to an in-flight batch.

        Raises:
            StageError: the GPU failed or is out of memory; the slot is usable again.
        """
        lease = SlotLease()
        try:
            slot = self._slots.acquire(self._create_slot, lease)
            with self.gpu.current():
                return work(slot)
        except BaseException as err:  # raised again: the slot must recover from any error, Ctrl-C included
            if (mine := self._slots.slot_of(lease)) is not None:
                with self.gpu.current():
                    mine.recover()
            if _needs_explanation(err):
                # Not assigned to a name: error and traceback would reference each other and keep partial objects alive.
                raise self._explain(err, batch) from err
            raise
        finally:
            try:
                self._slots.release(lease)
            except BaseException:  # raised again: an interrupt may arrive here too
                self._slots.release(lease)
                raise

    def _shape(self, batch: int) -> tuple[int, ...]:
        return with_channels(batch, *self._target, self.plan.layout, self.plan.channels)

    def _program(self, program: DeviceProgram) -> Program:
        if not self.detects:
            raise UsageError(
                f"frames on the GPU have three channels, but the engine's input has {self.plan.channels}",
                hint="use `Detector`, which prepares such images on the CPU",
            )
        loaded = self._programs.get(program)
        if loaded is not None:
            return loaded
        output = self.plan.outputs.get(program.output)
        if output is None or len(output.shape) != 3:
            found = ", ".join(f"`{t.name}` {t.shape}" for t in self.plan.outputs.values())
            layout = "(B, columns, rows)" if program.rows_last else "(B, rows, columns)"
            raise UsageError(f"expected an output `{program.output}` of {layout}, found {found}")
        if program.prototypes:
            maps = self.plan.outputs.get(program.prototypes)
            if maps is None or len(maps.shape) != 4 or maps.dtype != output.dtype:
                found = ", ".join(f"`{t.name}` {t.dtype} {t.shape}" for t in self.plan.outputs.values())
                wanted = f"{output.dtype} (B, masks, height, width)"
                raise UsageError(f"expected an output `{program.prototypes}` of {wanted}, found {found}")
        with self._loading:  # kernels loaded twice would be freed on a thread without the GPU's context
            loaded = self._programs.get(program)
            if loaded is None:
                kernels = load_kernels(self.gpu, output.dtype, self._side_cache, program)
                loaded = self._programs[program] = Program(
                    program.output, program.classes, kernels, program.prototypes, program.rows_last
                )
        return loaded

    def _save_cache(self, shape: tuple[int, ...]) -> None:
        """Cache just-in-time compiled kernels, once per shape, after its first run."""
        if shape not in self._saved_for:
            self._saved_for.add(shape)
            self.plan.save_cache()

    def _create_slot(self) -> ExecutionSlot:
        try:
            with self.gpu.recording, self.gpu.current():
                return ExecutionSlot(self._shared, use_graph=self._options.cuda_graph)
        except Exception as err:  # pycuda and TensorRT raise their own errors
            if _needs_explanation(err):
                raise self._explain(err, self._max_images) from err  # not assigned to a name, see `_run_on_slot`
            raise

    def _explain(self, err: Exception, batch: int) -> Exception:
        if not isinstance(err, MemoryError):
            return as_stage_error(err)
        self._pool.free_idle()
        if isinstance(err, PinnedMemoryError):
            return StageError(str(err), hint="frames and boxes use page-locked memory: a smaller batch needs less")
        if self._jpegs is not None:
            self._jpegs.free_idle()
        with self.gpu.current():
            free = self.gpu.free_bytes()
        each = self._bytes_per_image()
        fits = min(batch - 1, free // each)
        return StageError(
            f"out of GPU memory on {self.gpu.name}: a batch of {batch} needs about {batch * each >> 20} MiB, "
            f"{free >> 20} MiB are free",
            hint=f"a batch of {fits} would fit: build with `--batch {fits}`"
            if fits > 0
            else "not one image fits: free GPU memory first",
        )

    def _bytes_per_image(self) -> int:
        """Estimate the memory of one more image in the batch: its share of context, input, output and scratch."""
        max_batch, height, width = without_channels(self.plan.profiles[0][2], self.plan.layout)
        pixels = height * width
        tensors = 3 * pixels * ELEMENT_BYTES[self.plan.image.dtype]
        for output in self.plan.outputs.values():
            if len(output.shape) == 2:  # (B, classes)
                tensors += max(output.shape[1], len(self.spec.model.labels)) * ELEMENT_BYTES[output.dtype]
                continue
            columns = output.shape[-1] if output.shape[-1] > 0 else 5 + len(self.spec.model.labels)
            # 3 anchors on 3 levels of strides 8, 16, 32 if the rows are dynamic.
            rows = output.shape[1] if output.shape[1] > 0 else 3 * (pixels // 64 + pixels // 256 + pixels // 1024)
            tensors += rows * columns * ELEMENT_BYTES[output.dtype]
        return self.plan.context_bytes // max_batch + tensors + (1 << 20)

    def close(self) -> None:
        """Finish in-flight batches and free all memory."""
        with self._loading:
            if self._closed:
                return
            self._closed = True
        is_idle = self._slots.close()
        with self.gpu.current():
            self._slots.free()
            if is_idle:
                self._programs.clear()
                self.plan.close()
        self._shared.copy_threads.close()
        if self._jpegs is not None:
            self._jpegs.close()
        self._pool.close()


def _needs_explanation(err: BaseException) -> TypeGuard[Exception]:
    """Check whether `EngineSession._explain` can improve an error."""
    return isinstance(err, MemoryError) or (isinstance(err, Exception) and as_stage_error(err) is not err)
