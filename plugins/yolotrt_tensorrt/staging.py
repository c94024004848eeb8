"""Host frames to device memory: straight from pinned memory, else through it, copied by several threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_tensorrt.gpu import DeviceMemory, Gpu, PinnedPool, is_pinned

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALIGNMENT = 256
# One thread copies into pinned memory at about 10 GB/s, eight at 25, and PCIe 5 takes 50; the driver's own way
# from pageable memory does 13. So threads pay for whole batches, not for one frame, where waking them costs more.
_THREADS = 8
_PIECE_BYTES = 1 << 20
_STAGED_FROM_BYTES = 16 << 20


class CopyThreads:
    """The threads that copy frames into pinned memory, started when first needed."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = min(_THREADS, os.cpu_count() or 1) if threads is None else threads
        self._pool: ThreadPoolExecutor | None = None

    @property
    def enabled(self) -> bool:
        return self._threads > 1

    def submit(self, copies: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Future[None]:
        """Copy each second array into its first, on some thread; NumPy lets go of the GIL meanwhile."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="yolotrt-copy")
        return self._pool.submit(_copy, copies)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _copy(copies: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> None:
    for target, source in copies:
        np.copyto(target, source)


class Uploads:
    """Where one lane's frames lie on the device, and how they get there."""

    def __init__(self, gpu: Gpu, pool: PinnedPool, threads: CopyThreads) -> None:
        self._gpu, self._pool, self._threads = gpu, pool, threads
        self._device = DeviceMemory(gpu)
        self._staging: NDArray[np.uint8] = np.empty(0, np.uint8)

    def upload(self, frames: Sequence[NDArray[np.uint8]], stream: Any) -> list[int]:
        """Put the upload of frames on a stream.

        Args:
            frames: checked by `check_frames`. They may be changed again when the stream is done; those not in
                pinned memory as soon as this returns.

        Returns:
            The device address of each frame.
        """
        offsets, total = [], 0
        for frame in frames:
            offsets.append(total)
            total += -(-frame.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._device.reserve(total)
        base = self._device.address
        direct = total < _STAGED_FROM_BYTES or not self._threads.enabled
        staged = []
        for frame, offset in zip(frames, offsets, strict=True):
            if frame.flags.c_contiguous and (direct or is_pinned(frame)):
                self._gpu.cuda.memcpy_htod_async(base + offset, frame, stream)
            else:
                staged.append((frame, offset))
        if staged:
            self._through_staging(staged, total, stream)
        return [base + offset for offset in offsets]

    def _through_staging(self, staged: list[tuple[NDArray[np.uint8], int]], total: int, stream: Any) -> None:
        """Copy in pieces, each on its way as soon as it and those before it are in pinned memory."""
        if self._staging.size < total:
            self._staging = self._pool.array((total,))
        waiting = [(self._threads.submit(copies), begin, end) for copies, begin, end in self._pieces(staged)]
        for copied, begin, end in waiting:
            copied.result()
            self._gpu.cuda.memcpy_htod_async(self._device.address + begin, self._staging[begin:end], stream)

    def _pieces(
        self, staged: list[tuple[NDArray[np.uint8], int]]
    ) -> list[tuple[list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], int, int]]:
        """Cut big frames and gather small ones; each piece is one range of the staging memory."""
        pieces = []
        copies: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        begin = end = staged[0][1]
        for frame, offset in staged:
            if copies and (offset - end >= _ALIGNMENT or end - begin >= _PIECE_BYTES):
                pieces.append((copies, begin, end))
                copies = []
            if not copies:
                begin = offset
            target = self._staging[offset : offset + frame.nbytes].reshape(frame.shape)
            rows = max(1, _PIECE_BYTES * len(frame) // frame.nbytes)
            for first in range(0, len(frame), rows):
                if copies and first:
                    pieces.append((copies, begin, end))
                    copies, begin = [], end
                copies.append((target[first : first + rows], frame[first : first + rows]))
                end = offset + min(first + rows, len(frame)) * frame.nbytes // len(frame)
        pieces.append((copies, begin, end))
        return pieces

    def close(self) -> None:
        """Free the device memory; nothing may be on its way."""
        self._device.close()
        self._staging = np.empty(0, np.uint8)


def check_frames(frames: Sequence[NDArray[np.uint8]]) -> None:
    """Refuse what is neither a BGR nor an NV12 picture.

    Raises:
        UsageError: saying what was found.
    """
    for index, frame in enumerate(frames):
        if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.size:
            if frame.ndim == 3 and frame.shape[2] == 3:
                continue
            if frame.ndim == 2 and frame.shape[0] % 3 == 0 and frame.shape[1] % 2 == 0:
                continue
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise UsageError(f"frame {index}: a frame is uint8 (H, W, 3) in BGR or (H * 3 / 2, W) in NV12, found {found}")
