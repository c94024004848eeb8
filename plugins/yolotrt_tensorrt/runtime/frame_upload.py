"""Upload of host frames: single frames directly, batches through pinned memory that threads fill."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.inference.frame_checks import is_image, refuse_frame
from yolotrt_core.media.frames import Frame, Nv12Frame
from yolotrt_core.media.prefetch import processors
from yolotrt_tensorrt.cuda.device import DeviceMemory, Gpu, PinnedPool, is_pinned
from yolotrt_tensorrt.runtime.device_structs import RowSubset, rows_read
from yolotrt_tensorrt.runtime.jpeg_decoder import DeviceImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALIGNMENT = 256
# One thread copies into pinned memory at about 10 GB/s, eight at 25, and PCIe 5 allows 50; the driver copies from
# pageable memory at 13. So threads are faster for batches but not for a single frame: for 1920x1080, frame to boxes
# takes 0.61 ms with the driver, 0.71 with one thread, 0.77 with two, 0.96 with four.
_THREADS = 8
_PIECE_BYTES = 1 << 20
_STAGED_FROM_BYTES = 2 << 20


class CopyThreads:
    """Threads that copy frames into pinned memory, started on first use."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = min(_THREADS, processors()) if threads is None else threads
        self._pool: ThreadPoolExecutor | None = None

    @property
    def enabled(self) -> bool:
        return self._threads > 1

    def submit(self, copies: list[_Copy]) -> Future[None]:
        """Run copies on a thread; NumPy releases the GIL for them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="yolotrt-copy")
        return self._pool.submit(_copy, copies)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of rows of a frame, by index or slice, to rows of the target."""

    target: NDArray[np.uint8]
    frame: NDArray[np.uint8]
    rows: NDArray[np.intp] | slice


def _copy(copies: list[_Copy]) -> None:
    for copy in copies:
        if isinstance(copy.rows, slice):
            np.copyto(copy.target, copy.frame[copy.rows])
        else:  # modes other than `clip` use a temporary buffer
            np.take(copy.frame, copy.rows, axis=0, out=copy.target, mode="clip")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Device address of a frame, and its `RowSubset.packed` (0: all rows)."""

    address: int
    packed: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A frame to upload: its rows, None for all, and its offset in the slot's memory."""

    frame: NDArray[np.uint8]
    rows: RowSubset | None
    offset: int

    @property
    def height(self) -> int:
        return len(self.frame) if self.rows is None else len(self.rows.index)

    @property
    def row_bytes(self) -> int:
        return self.frame.nbytes // len(self.frame)

    def copy(self, staging: NDArray[np.uint8], first: int, last: int) -> _Copy:
        """Return the copy of its rows [first, last) to staging memory."""
        begin, end = self.offset + first * self.row_bytes, self.offset + last * self.row_bytes
        target = staging[begin:end].reshape(last - first, *self.frame.shape[1:])
        return _Copy(target, self.frame, slice(first, last) if self.rows is None else self.rows.index[first:last])


class FrameUploader:
    """Device memory of one slot's frames, and their upload."""

    def __init__(self, gpu: Gpu, pool: PinnedPool, threads: CopyThreads) -> None:
        self._gpu, self._pool, self._threads = gpu, pool, threads
        self._device = DeviceMemory(gpu)
        self._staging: NDArray[np.uint8] = np.empty(0, np.uint8)

    def upload(
        self, frames: Sequence[NDArray[np.uint8] | DeviceImage], target: tuple[int, int], stream: Any
    ) -> list[Uploaded]:
        """Enqueue the upload of frames: of large ones only the rows that are read, of device images nothing.

        Args:
            frames: as `check_frames` returns them. They may be changed when the stream is done; those not in
                pinned memory when this returns. target: (height, width) they are letterboxed to.
        """
        host = [f for f in frames if not isinstance(f, DeviceImage)]
        sent = iter(self._upload(host, target, stream) if host else ())
        return [Uploaded(f.address, 0) if isinstance(f, DeviceImage) else next(sent) for f in frames]

    def _upload(self, frames: Sequence[NDArray[np.uint8]], target: tuple[int, int], stream: Any) -> list[Uploaded]:
        parts, total = [], 0
        for frame in frames:
            rows = rows_read(frame.shape, target)
            if rows is not None and is_pinned(frame) and not rows.step:
                rows = None  # the copy engine needs equally spaced rows; gathering others is slower
            parts.append(_Part(frame, rows, total))
            total += -(-parts[-1].height * parts[-1].row_bytes // _ALIGNMENT) * _ALIGNMENT
        self._device.reserve(total)
        few = len(parts) == 1 or total < _STAGED_FROM_BYTES or not self._threads.enabled
        staged = []
        for part in parts:
            straight = part.frame.flags.c_contiguous
            page_locked = is_pinned(part.frame)
            if straight and (page_locked or few) and (part.rows is None or part.rows.step):
                self._upload_directly(part, stream, page_locked=page_locked)
            else:
                staged.append(part)
        if staged:
            self._upload_staged(staged, total, stream, on_threads=not few)
        return [Uploaded(self._device.address + p.offset, p.rows.packed if p.rows else 0) for p in parts]

    def _upload_directly(self, part: _Part, stream: Any, *, page_locked: bool) -> None:
        address = self._device.address + part.offset
        if part.rows is not None:
            read = part.frame[part.rows.first : part.rows.last + 1]
            step, width = part.rows.step * part.row_bytes, part.rows.packed * part.row_bytes
            self._gpu.upload_rows(address, read, step, width, stream, page_locked=page_locked)
        elif page_locked:
            self._gpu.upload_pinned(address, part.frame, stream)
        else:
            self._gpu.cuda.memcpy_htod_async(address, part.frame, stream)

    def _upload_staged(self, staged: list[_Part], total: int, stream: Any, *, on_threads: bool) -> None:
        """Copy in pieces; each is uploaded once it and its predecessors are in pinned memory."""
        if self._staging.size < total:
            self._staging = self._pool.array((total,))
        pieces = self._split_pieces(staged)
        copying = [self._threads.submit(copies) for copies, _, _ in pieces] if on_threads else []
        for index, (copies, begin, end) in enumerate(pieces):
            if on_threads:
                copying[index].result()
            else:
                _copy(copies)
            self._gpu.upload_pinned(self._device.address + begin, self._staging[begin:end], stream)

    def _split_pieces(self, staged: list[_Part]) -> list[tuple[list[_Copy], int, int]]:
        """Split large frames and merge small ones; each piece is one range of the staging memory."""
        pieces = []
        copies: list[_Copy] = []
        begin = end = staged[0].offset
        for part in staged:
            if copies and (part.offset - end >= _ALIGNMENT or end - begin >= _PIECE_BYTES):
                pieces.append((copies, begin, end))
                copies = []
            if not copies:
                begin = part.offset
            rows = max(1, _PIECE_BYTES // part.row_bytes)
            for first in range(0, part.height, rows):
                if copies and first:
                    pieces.append((copies, begin, end))
                    copies, begin = [], end
                last = min(first + rows, part.height)
                copies.append(part.copy(self._staging, first, last))
                end = part.offset + last * part.row_bytes
        pieces.append((copies, begin, end))
        return pieces

    def close(self) -> None:
        """Free the device memory; no upload may be in flight."""
        self._device.close()
        self._staging = np.empty(0, np.uint8)


def check_frames(frames: Sequence[Frame], first: int = 0) -> list[NDArray[np.uint8] | DeviceImage]:
    """Return frames in upload format: BGR as uint8 (H, W, 3), NV12 as its planes, uint8 (H * 3 / 2, W).

    Args:
        first: number of the first frame, for messages.

    Raises:
        UsageError: a frame has an invalid type or shape.
    """
    taken: list[NDArray[np.uint8] | DeviceImage] = []
    for number, frame in enumerate(frames, first):
        if isinstance(frame, Nv12Frame):
            taken.append(frame.planes)
        elif isinstance(frame, DeviceImage) or is_image(frame):
            taken.append(frame)
        else:
            refuse_frame(number, frame)
    return taken
