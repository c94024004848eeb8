"""One GPU through pycuda: its primary context, its memory, its streams.

Ownership. The primary context is retained, never created: torch, cuda-python and TensorRT in the same process
share it. It is current only inside `Gpu.current()`, which pushes and pops it on this thread, so public methods of a
session work from any thread. Memory is freed by its owner's `close`, or with the last reference, in either case
with the context current.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import StageError
from yolotrt_core.media.frames import HostBuffer
from yolotrt_tensorrt.cuda import driver

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# Sizes are rounded up, so that frames of similar size share memory.
_POOL_STEP = 1 << 18
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, missing in pycuda


@functools.cache
def open_gpu(ordinal: int) -> Gpu:
    """Return the GPU of a CUDA device number; one object per process and number.

    Raises:
        StageError: pycuda, the driver or the device is missing.
    """
    try:
        import pycuda.driver as cuda
    except ImportError as err:
        raise StageError(
            f"running a TensorRT engine needs pycuda: {err}", hint="pip install 'yolotrt-core[gpu]'"
        ) from err
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as err:
        raise StageError(f"no usable NVIDIA GPU: {err}", hint="see `doctor` for the driver's state") from err
    if not 0 <= ordinal < count:
        raise StageError(
            f"CUDA device {ordinal} does not exist, found {count}", hint="choose one with `--tensorrt-device`"
        )
    return Gpu(ordinal)


class _Current:
    """A context, current in the block. It is stateless: all threads share one object."""

    __slots__ = ("_context", "_cuda")

    def __init__(self, cuda: Any, context: Any) -> None:
        self._cuda, self._context = cuda, context

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cuda.Context.pop()


class Gpu:
    """A device and its retained primary context; get one from `open_gpu`.

    Attributes:
        name: as the driver says. capability: e.g. (9, 0). shared_bytes: maximum shared memory per block.
        recording: held during graph capture, and during calls that may synchronize the device, which would break a
            capture.
    """

    def __init__(self, ordinal: int) -> None:
        import pycuda.driver as cuda

        self.cuda: Any = cuda
        device = cuda.Device(ordinal)
        self.ordinal = ordinal
        self.name: str = device.name()
        self.capability: tuple[int, int] = tuple(device.compute_capability())
        self.shared_bytes: int = device.get_attribute(cuda.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        version = cuda.get_driver_version()
        self.driver = f"{version // 1000}.{version % 1000 // 10}"
        self.recording = threading.Lock()
        self._current = _Current(cuda, device.retain_primary_context())
        self._copy = driver.copy_to_device()
        self._copy_rows = {locked: driver.copy_rows_to_device(page_locked=locked) for locked in (False, True)}

    def current(self) -> _Current:
        """Make the context current on this thread for the block; may be nested."""
        return self._current

    def stream(self) -> Any:
        """Return a new non-blocking stream. The context must be current.

        A blocking stream synchronizes with the default stream; while it captures a graph, work on the default stream
        fails, and torch puts all its work there.
        """
        return self.cuda.Stream(_NON_BLOCKING)

    def upload_pinned(self, address: int, source: NDArray[Any], stream: Any) -> None:
        """Enqueue a copy from page-locked memory to the device. The context must be current.

        Not by pycuda, which releases the GIL for these two microseconds: with decoding threads, reacquiring it for
        every frame of a batch takes longer than the network.
        """
        error = self._copy(address, source.ctypes.data, source.nbytes, stream.handle)
        if error:
            raise self.cuda.Error(f"cuMemcpyHtoDAsync failed: CUDA error {error}")

    def upload_rows(
        self, address: int, source: NDArray[Any], step: int, width: int, stream: Any, *, page_locked: bool
    ) -> None:
        """Enqueue a copy of equally spaced rows to the device, without gaps. The context must be current.

        Args:
            source: contiguous, starts with the first row. step: bytes from row to row. width: bytes of each.
            page_locked: whether `source` is; if not, it may be changed after this returns.
        """
        rows = -(-source.nbytes // step)
        error = self._copy_rows[page_locked](address, source.ctypes.data, step, width, rows, stream.handle)
        if error:
            raise self.cuda.Error(f"cuMemcpy2DAsync failed: CUDA error {error}")

    def free_bytes(self) -> int:
        """Return the free device memory. The context must be current."""
        return int(self.cuda.mem_get_info()[0])


@contextmanager
def out_of_memory(gpu: Gpu) -> Iterator[None]:
    """Translate CUDA's out-of-memory error to `MemoryError`."""
    try:
        yield
    except gpu.cuda.MemoryError as err:
        raise MemoryError(str(err)) from err


class DeviceMemory:
    """Device memory that grows and never shrinks; its address changes when it grows.

    Attributes:
        address: 0 while empty. size: in bytes.
    """

    def __init__(self, gpu: Gpu, size: int = 0) -> None:
        self._gpu = gpu
        self._allocation: Any = None
        self.address = 0
        self.size = 0
        if size:
            self.reserve(size)

    def reserve(self, size: int) -> bool:
        """Reserve at least `size` bytes; return whether the memory moved, which loses its content.

        Raises:
            MemoryError: the GPU is out of memory.
        """
        if size <= self.size:
            return False
        self.close()
        with self._gpu.current(), out_of_memory(self._gpu):
            self._allocation = self._gpu.cuda.mem_alloc(size)
        self.address, self.size = int(self._allocation), size
        return True

    def close(self) -> None:
        """Free the memory; it may be reserved again."""
        allocation, self._allocation, self.address, self.size = self._allocation, None, 0, 0
        if allocation is not None:
            with self._gpu.current():
                allocation.free()

    def __del__(self) -> None:
        _quietly(self.close)


class PinnedMemoryError(MemoryError):
    """The host, not the GPU, is out of page-locked memory."""


class _Pinned:
    """One allocation of page-locked host memory."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu = gpu
        self._allocation: Any = None
        with gpu.current():
            try:
                array = gpu.cuda.pagelocked_empty(size, np.uint8)
            except gpu.cuda.MemoryError as err:
                raise PinnedMemoryError(
                    f"cannot allocate {size / (1 << 20):.1f} MiB of page-locked host memory: {err}"
                ) from err
        self._allocation = array.base
        self.address: int = array.ctypes.data

    def __del__(self) -> None:
        if self._allocation is not None:
            _quietly(self._free)

    def _free(self) -> None:
        with self._gpu.current():
            self._allocation.free()


class PageLock:
    """Page lock of memory of another owner, which must outlive it."""

    def __init__(self, gpu: Gpu, memory: NDArray[np.uint8]) -> None:
        """Lock the memory.

        Raises:
            StageError: the driver refuses.
        """
        self._gpu = gpu
        self._address: int | None = None
        with gpu.current():
            driver.page_lock(memory.ctypes.data, memory.nbytes)
        self._address = memory.ctypes.data

    def __del__(self) -> None:
        if self._address is not None:
            _quietly(self._unlock)

    def _unlock(self) -> None:
        assert self._address is not None  # checked by `__del__`
        with self._gpu.current():
            driver.page_unlock(self._address)


class PinnedPool:
    """Pool of page-locked memory: allocating it takes longer than filling it.

    Lock-free, since arrays may be destroyed, and return here, at any point of any thread.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._free: defaultdict[int, deque[_Pinned]] = defaultdict(deque)
        self._closed = False

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an uninitialised uint8 array; its memory returns to the pool with the last view.

        Raises:
            PinnedMemoryError: the host is out of page-locked memory.
        """
        used = math.prod(shape)
        size = max(1, -(-used // _POOL_STEP)) * _POOL_STEP
        try:
            memory = self._free[size].pop()
        except IndexError:
            try:
                memory = _Pinned(self._gpu, size)
            except MemoryError:
                self.free_idle()
                memory = _Pinned(self._gpu, size)
        back = functools.partial(_quietly, functools.partial(self.take_back, memory, size))
        array: NDArray[np.uint8] = np.asarray(HostBuffer(memory.address, used, back, page_locked=True)).reshape(shape)
        return array

    def take_back(self, memory: _Pinned, size: int) -> None:
        """Return memory to the pool; after `close` it is freed instead."""
        if not self._closed:
            self._free[size].append(memory)

    def free_idle(self) -> None:
        """Free unused memory, left by images of many sizes."""
        for idle in list(self._free.values()):
            idle.clear()

    def close(self) -> None:
        """Free unused memory, and used memory as soon as it returns."""
        self._closed = True
        self._free.clear()


def is_pinned(array: NDArray[Any]) -> bool:
    """Check whether an array is in page-locked memory, e.g. of a `PinnedPool`."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, HostBuffer) and base.page_locked


def _quietly(free: Any) -> None:
    try:
        free()
    except Exception:  # noqa: BLE001 - a destructor: at interpreter exit modules may be gone
        _log.debug("device memory could not be freed", exc_info=True)


def as_stage_error(err: Exception) -> Exception:
    """Convert CUDA's errors to StageError; return others unchanged."""
    if type(err).__module__.startswith("pycuda"):
        return StageError(f"CUDA error: {err}", hint="the session is unusable; see `nvidia-smi` and the kernel log")
    return err
