"""Decoding of JPEG files by the GPU's JPEG hardware, with nvJPEG (extra `nvjpeg`).

Pixels equal OpenCV's, within one step for rare chroma samplings. Files that might decode differently (other
formats, progressive, rotated or corrupted images) are left to OpenCV.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.media.jpeg_header import upright_size
from yolotrt_tensorrt.cuda import graph as cuda_graph, nvjpeg
from yolotrt_tensorrt.cuda.device import DeviceMemory, Gpu, PinnedPool
from yolotrt_tensorrt.cuda.nvjpeg import NvJpeg, NvJpegError, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_MEMORY_STEP = 1 << 20  # images of similar size share memory


class DeviceImage:
    """A BGR image in device memory, rows without gaps; its memory is reused after its last reference.

    Attributes:
        shape: (H, W, 3). address: of its first pixel on the device.
    """

    def __init__(self, decoder: JpegDecoder, memory: DeviceMemory, shape: tuple[int, int, int]) -> None:
        self._decoder, self._memory = decoder, memory
        self.shape, self.address = shape, memory.address

    def to_host(self) -> NDArray[np.uint8]:
        """Copy the pixels to host memory."""
        return self._decoder.download(self)

    def __del__(self) -> None:
        self._decoder.take_back(self._memory)


class _Worker:
    """Decoder state, stream and page-locked file memory of one thread.

    The driver copies files in pageable memory synchronously, for one caller at a time.
    """

    def __init__(self, gpu: Gpu, pool: PinnedPool, codec: NvJpeg) -> None:
        self._pool, self._codec = pool, codec
        self.stream: Any = _urgent_stream() or gpu.stream()
        self.state = codec.new_state()  # last, since a later failure would leak it
        self._staging: NDArray[np.uint8] = np.empty(0, np.uint8)

    def decode(self, files: Sequence[bytes], targets: Sequence[Target]) -> None:
        """Decode a batch and wait for it, without blocking other threads.

        Raises:
            NvJpegError: one of the files cannot be decoded.
        """
        total = sum(map(len, files))
        if len(self._staging) < total:
            self._staging = self._pool.array((2 * total,))
        # NumPy and ctypes release the GIL for each copy, and reacquiring it takes longer than the copy.
        view, address = self._staging.data, self._staging.ctypes.data
        placed, begin = [], 0
        for file in files:
            view[begin : begin + len(file)] = file
            placed.append((address + begin, len(file)))
            begin += len(file)
        try:
            self._codec.decode(self.state, placed, targets, self.stream.handle)
        finally:
            self.stream.synchronize()  # also after an error: the staging memory is reused

    def close(self) -> None:
        """Free the decoder state."""
        self._codec.free_state(self.state)


class JpegDecoder:
    """Decodes batches of JPEG files; any number of threads may call it, each with its own worker."""

    def __init__(self, gpu: Gpu, pool: PinnedPool, codec: NvJpeg) -> None:
        self._gpu, self._pool, self._codec = gpu, pool, codec
        self._idle: deque[_Worker] = deque()
        self._free: defaultdict[int, deque[DeviceMemory]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._running = 0  # running calls of `decode`, which need the library
        self._closed = False

    def decode(self, files: Sequence[bytes]) -> list[DeviceImage | None]:
        """Decode files.

        Args:
            files: file contents.

        Returns:
            One image per file, or None where OpenCV should decode it.

        Raises:
            UsageError: after `close`.
        """
        with self._changed:
            if self._closed:
                raise UsageError("the session is closed")
            self._running += 1
        try:
            return self._decode_supported(files)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _decode_supported(self, files: Sequence[bytes]) -> list[DeviceImage | None]:
        sizes = [upright_size(f) for f in files]
        chosen = [(i, size) for i, size in enumerate(sizes) if size is not None]
        decoded: list[DeviceImage | None] = [None] * len(files)
        if not chosen:
            return decoded
        with self._gpu.current():
            try:
                images = [self._allocate_image(*size) for _, size in chosen]
                self._decode([files[i] for i, _ in chosen], images)
            except (NvJpegError, MemoryError, self._gpu.cuda.Error) as err:  # OpenCV reports what is wrong with a file
                _log.debug("nvJPEG cannot decode %d images: %s", len(chosen), err)
                # A single unsupported file may be the reason.
                return [self._decode_supported([f])[0] for f in files] if len(chosen) > 1 else decoded
        for (index, _), image in zip(chosen, images, strict=True):
            decoded[index] = image
        return decoded

    def _decode(self, files: Sequence[bytes], images: Sequence[DeviceImage]) -> None:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._gpu, self._pool, self._codec)
        try:
            worker.decode(files, [Target(p.address, 3 * p.shape[1]) for p in images])
        except BaseException:  # raised again: the decoder state is undefined after an error
            worker.close()
            raise
        self._idle.append(worker)

    def _allocate_image(self, height: int, width: int) -> DeviceImage:
        """Allocate an image; device allocations block all running work, so memory is reused."""
        size = -(-3 * height * width // _MEMORY_STEP) * _MEMORY_STEP
        try:
            memory = self._free[size].pop()
        except IndexError:
            try:
                memory = DeviceMemory(self._gpu, size)
            except MemoryError:
                self.free_idle()
                memory = DeviceMemory(self._gpu, size)
        return DeviceImage(self, memory, (height, width, 3))

    def download(self, image: DeviceImage) -> NDArray[np.uint8]:
        """Copy an image's pixels to page-locked memory."""
        host = self._pool.array(image.shape)
        with self._gpu.current():
            self._gpu.cuda.memcpy_dtoh(host, image.address)
        return host

    def take_back(self, memory: DeviceMemory) -> None:
        """Keep an image's memory for reuse; after `close` it is freed with its last reference."""
        if not self._closed:
            self._free[memory.size].append(memory)

    def free_idle(self) -> None:
        """Free unused memory, left by images of many sizes."""
        with self._gpu.current():
            for idle in list(self._free.values()):
                idle.clear()

    def close(self) -> None:
        """Wait for running calls, then free workers and unused memory."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)
        with self._gpu.current():
            self._free.clear()
            while self._idle:
                self._idle.pop().close()
            self._codec.close()


class _UrgentStream:
    """A stream whose small kernels have priority over the network's, since whole batches wait for them.

    Attributes:
        handle: as an integer.
    """

    def __init__(self, driver: Any) -> None:
        self._driver, self._stream = driver, None
        _, greatest = self._checked(driver.cuCtxGetStreamPriorityRange())
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        (self._stream,) = self._checked(driver.cuStreamCreateWithPriority(int(flags), greatest))
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        """Wait for all work on the stream."""
        self._checked(self._driver.cuStreamSynchronize(self._stream))

    @staticmethod
    def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
        if int(result[0]):
            raise NvJpegError(f"CUDA: {result[0].name}")
        return result[1:]

    def __del__(self) -> None:
        if self._stream is not None:
            self._driver.cuStreamDestroy(self._stream)


def _urgent_stream() -> _UrgentStream | None:
    """Return a stream of the highest priority, or None without cuda-python; pycuda does not support priorities."""
    if not cuda_graph.available():
        return None
    from cuda.bindings import driver

    return _UrgentStream(driver)


def open_decoder(gpu: Gpu, pool: PinnedPool) -> JpegDecoder | None:
    """Return a decoder, or None where nvJPEG is not installed or the GPU has no JPEG hardware."""
    library = nvjpeg.load()
    if library is None:
        return None
    try:
        with gpu.current():
            return JpegDecoder(gpu, pool, NvJpeg(library))
    except NvJpegError as err:
        _log.info("decoding JPEG files on the CPU: %s", err)
        return None
