"""A stand-in for pycuda and a loaded plan: device memory is host memory, kernels run on the CPU.

It proves the host code (addresses, order, threads, freeing), not CUDA's: the tests in tests/gpu do that.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from kernel_emulation import Emulated

from yolotrt_core.errors import UsageError
from yolotrt_tensorrt.cuda.device import Gpu, _Current
from yolotrt_tensorrt.cuda.kernels_loader import _SIGNATURES, Kernel
from yolotrt_tensorrt.runtime.loaded_engine import LoadedEngine, Tensor

_TAPE = threading.local()


def put(work: Callable[[], object]) -> None:
    """Do work of a stream at once; of one that this thread records, when the graph is launched."""
    tape: list[Callable[[], object]] | None = getattr(_TAPE, "work", None)
    if tape is None:
        work()
    else:
        tape.append(work)


class FakeGraph:
    """A recording; launched, it does the same work with the same addresses again.

    Attributes:
        made, launched: how many, of all sessions. fails: raised in place of a recording.
    """

    made = launched = 0
    fails: Exception | None = None

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        self._work: list[Callable[[], object]] | None = []
        _TAPE.work = self._work
        try:
            enqueue()
            if self.fails is not None:
                raise self.fails
        finally:
            _TAPE.work = None
        assert self._work
        FakeGraph.made += 1

    def launch(self) -> None:
        FakeGraph.launched += 1
        assert self._work is not None, "the graph was closed"
        for work in self._work:
            work()

    def close(self) -> None:
        self._work = None


class FakeCuda(types.SimpleNamespace):
    """The part of `pycuda.driver` that is used.

    Attributes:
        live: bytes of device memory allocated and not freed. limit: what the device has.
        pinned: allocations of host memory not freed.
    """

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class device_attribute:  # noqa: N801 - pycuda's name
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 1

    class function_attribute:  # noqa: N801 - pycuda's name
        MAX_DYNAMIC_SHARED_SIZE_BYTES = 2

    def __init__(self) -> None:
        super().__init__()
        self.live, self.limit, self.pinned = 0, 1 << 40, 0
        self.handles = itertools.count(7)
        self.current = threading.local()
        self.Context = types.SimpleNamespace(pop=self._pop)

    def _push(self) -> None:
        self.current.depth = getattr(self.current, "depth", 0) + 1

    def _pop(self) -> None:
        self.current.depth -= 1

    def _check(self) -> None:
        if getattr(self.current, "depth", 0) < 1:
            raise self.Error("no context is current on this thread")

    def Device(self, ordinal: int) -> Any:
        return types.SimpleNamespace(
            name=lambda: "Fake GPU",
            compute_capability=lambda: (9, 0),
            get_attribute=lambda _: 64 << 10,
            retain_primary_context=lambda: types.SimpleNamespace(push=self._push),
        )

    def get_driver_version(self) -> int:
        return 13000

    def mem_get_info(self) -> tuple[int, int]:
        self._check()
        return self.limit - self.live, self.limit

    def mem_alloc(self, size: int) -> Any:
        self._check()
        if self.live + size > self.limit:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        self.live += size
        return _Allocation(self, size)

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        self._check()
        array = np.empty(size, dtype)
        self.pinned += 1

        def free() -> None:
            self._check()
            self.pinned -= 1

        owner = types.SimpleNamespace(free=free, array=array)
        return types.SimpleNamespace(base=owner, ctypes=array.ctypes)

    def Stream(self, flags: int = 0) -> Any:
        self._check()
        assert flags == 1, "a blocking stream breaks torch's work while it records a graph"
        handle = next(self.handles)
        return types.SimpleNamespace(handle=handle, synchronize=self._check, wait_for_event=lambda _: self._check())

    class event_flags:  # noqa: N801 - pycuda's name
        DISABLE_TIMING = 2

    def Event(self, flags: int = 0) -> Any:
        self._check()
        return types.SimpleNamespace(record=lambda _: self._check())

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        self._check()
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any) -> None:
        self._check()
        put(lambda: ctypes.memmove(target.ctypes.data, source, target.nbytes))

    def memcpy_dtoh(self, target: np.ndarray, source: int) -> None:
        self._check()
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def memset_d32_async(self, target: int, value: int, count: int, stream: Any) -> None:
        self._check()
        memory = np.ctypeslib.as_array(ctypes.cast(target, ctypes.POINTER(ctypes.c_uint32)), (count,))
        put(lambda: memory.fill(value))


class _Allocation:
    def __init__(self, cuda: FakeCuda, size: int) -> None:
        self._cuda, self._memory = cuda, np.full(size, 0xA5, np.uint8)

    def __int__(self) -> int:
        return self._memory.ctypes.data

    def free(self) -> None:
        self._cuda._check()
        self._cuda.live -= self._memory.size


def fake_gpu(cuda: FakeCuda) -> Gpu:
    """Return a `Gpu` on a fake driver."""
    gpu = Gpu.__new__(Gpu)
    device = cuda.Device(0)
    gpu.cuda, gpu.ordinal, gpu.name, gpu.capability, gpu.driver = cuda, 0, "Fake GPU", (9, 0), "13.0"
    gpu.shared_bytes = 64 << 10
    gpu.recording = threading.Lock()
    gpu._current = _Current(cuda, device.retain_primary_context())

    def copy(target: int, source: int, size: int, stream: int) -> int:
        cuda._check()
        put(lambda: ctypes.memmove(target, source, size))
        return 0

    def copy_rows(target: int, source: int, step: int, width: int, rows: int, stream: int) -> int:
        cuda._check()
        for row in range(rows):
            ctypes.memmove(target + row * width, source + row * step, width)
        return 0

    gpu._copy, gpu._copy_rows = copy, {False: copy_rows, True: copy_rows}
    return gpu


def fake_kernels(emulated: Emulated, cuda: FakeCuda) -> dict[str, Kernel]:
    """Return all kernels, running on the CPU."""

    def function(name: str) -> Any:
        def call(grid: Any, block: Any, stream: Any, *args: int, shared_size: int = 0) -> None:
            cuda._check()
            put(lambda: emulated.launch(name, grid, *args))

        return types.SimpleNamespace(prepared_async_call=call, set_attribute=lambda *_: None)

    return {name: Kernel(function(name), block) for name, (_, block) in _SIGNATURES.items()}


class FakeEngine(LoadedEngine):
    """A plan whose network is a function from images to raw output, both as NumPy arrays of one dtype."""

    def __init__(
        self, shape: tuple[int, ...], columns: int, network: Callable[[np.ndarray], np.ndarray], dtype: str
    ) -> None:
        rows = len(network(np.zeros((1, *shape[1:]), np.float32))[0])
        self.image = Tensor("images", dtype, shape)
        self.outputs = {"output0": Tensor("output0", dtype, (shape[0], rows, columns))}
        self.profiles = [(shape, shape, shape)]
        if shape[0] == -1:
            self.profiles = [((1, *shape[1:]), (2, *shape[1:]), (4, *shape[1:]))]
        self.context_bytes = 1 << 20
        self.network, self.saved, self.contexts = network, 0, itertools.count()
        self.made: list[Any] = []
        self.fails: Exception | None = None
        self.closed = False

    @property
    def captures_itself(self) -> bool:
        return False

    @property
    def side_streams(self) -> int:
        return 2

    def new_context(self, *, own_graph: bool) -> Any:
        next(self.contexts)
        context = types.SimpleNamespace(addresses={}, shape=(), aux=[])
        context.set_aux_streams = context.aux.extend
        self.made.append(context)
        context.get_tensor_shape = lambda name: (context.shape[0], *self.outputs["output0"].shape[1:])
        return context

    def save_cache(self) -> None:
        self.saved += 1

    def set_shape(self, context: Any, profile: int, shape: tuple[int, ...], stream: int) -> None:
        context.shape = shape

    def set_address(self, context: Any, name: str, address: int) -> None:
        context.addresses[name] = address

    def execute(self, context: Any, stream: int) -> None:
        if self.fails is not None:
            raise self.fails
        put(lambda: self._compute(context))

    def _compute(self, context: Any) -> None:
        images = self._at(context.addresses["images"], context.shape)
        raw = self.network(images.astype(np.float32))
        shape = (context.shape[0], *self.outputs["output0"].shape[1:])
        if raw.shape != shape:
            raise UsageError(f"the fake network gave {raw.shape}, expected {shape}")
        self._at(context.addresses["output0"], shape)[:] = raw

    def _at(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        kind = np.dtype(self.image.dtype)
        size = int(np.prod(shape)) * kind.itemsize
        buffer = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(buffer, kind).reshape(shape)

    def close(self) -> None:
        self.closed = True
