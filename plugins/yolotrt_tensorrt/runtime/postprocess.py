"""Raw output to final boxes and masks on the GPU: scratch memory, launches and download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.types import Detections
from yolotrt_tensorrt.cuda.device import DeviceMemory, Gpu, PinnedPool
from yolotrt_tensorrt.cuda.kernels_loader import Kernel
from yolotrt_tensorrt.runtime.device_structs import BOX_BYTES, FOUND, FRAME, GROUP_BYTES, KEY_BYTES, SUMMARY
from yolotrt_tensorrt.runtime.loaded_engine import ELEMENT_BYTES, Tensor
from yolotrt_tensorrt.runtime.mask_drawing import Boxes, MaskDrawing

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Candidates per block in shared memory: small at first, since more shared memory is slightly slower.
_FIRST_CAPACITY, _MOST_CAPACITY = 4096, 16384
_STATIC_SHARED_BYTES = 2048
_FIRST_ROOM = 300
_SORT_BLOCK = 2048
_CHUNK = 1024
_SCAN_BLOCKS = 512
_CLASS_ID, _MASK = 5, 7  # words of a FOUND


@dataclass(frozen=True, slots=True)
class Inputs:
    """Device addresses of the kernels' inputs: request, frames, class mask, raw output, prototypes of masks (or 0)."""

    request: int
    frames: int
    class_mask: int
    raw: int
    prototypes: int = 0


class Decoding:
    """Decodes the output of one slot; the GPU's context must be current around every call."""

    def __init__(
        self,
        gpu: Gpu,
        pool: PinnedPool,
        kernels: dict[str, Kernel],
        output: Tensor,
        masks: MaskDrawing | None = None,
    ) -> None:
        """Args: output: its actual sizes, as (B, rows, columns) in any case. masks: of a segmentation network."""
        self._masks = masks
        self._gpu, self._pool, self._kernels = gpu, pool, kernels
        self._batch, self._rows, self._columns = output.shape
        self._row_bytes = self._columns * ELEMENT_BYTES[output.dtype]
        largest = _MOST_CAPACITY
        while largest > 32 and _shared_bytes(largest) + _STATIC_SHARED_BYTES > gpu.shared_bytes:
            largest //= 2
        attribute = gpu.cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        kernels["suppress"].function.set_attribute(attribute, _shared_bytes(largest))
        self._max_capacity = largest
        self._counts = DeviceMemory(gpu, 4 * self._batch)
        self._keys, self._boxes, self._groups = DeviceMemory(gpu), DeviceMemory(gpu), DeviceMemory(gpu)
        self._results = DeviceMemory(gpu)
        self._version = 0
        self._set_capacity(min(_FIRST_CAPACITY, largest))
        self._set_room(_FIRST_ROOM)

    @property
    def version(self) -> tuple[int, int]:
        """Changes with any address or size that a captured graph contains."""
        return self._version, self._masks.version if self._masks else 0

    def reserve(self, max_det: int, *, multi_label: bool) -> None:
        """Reserve memory for this many boxes per image, or for the maximum."""
        room = min(max_det, self._rows * (self._columns if multi_label else 1))
        if room > self._room:
            self._set_room(room)

    def _set_capacity(self, capacity: int) -> None:
        self._capacity = capacity
        for memory, size in ((self._keys, KEY_BYTES), (self._boxes, BOX_BYTES), (self._groups, GROUP_BYTES)):
            memory.reserve(self._batch * capacity * size)
        self._version += 1

    def _set_room(self, room: int) -> None:
        self._room = room
        self._found_offset = self._batch * SUMMARY.itemsize
        size = self._found_offset + self._batch * room * FOUND.itemsize
        self._results.reserve(size)
        self._host: NDArray[np.uint8] = self._pool.array((size,))
        summaries = self._host[: self._found_offset].view(SUMMARY)
        self._candidates, self._kept, self._overflow = (summaries[n] for n in ("candidates", "kept", "overflow"))
        self._mask_bytes = summaries["mask_bytes"]
        found = self._host[self._found_offset :]
        self._found_f32 = found.view(np.float32).reshape(self._batch, room, -1)
        self._found_i32 = found.view(np.int32).reshape(self._batch, room, -1)
        self._version += 1

    def enqueue(self, stream: Any, inputs: Inputs) -> None:
        """Enqueue decoding and the download of the boxes."""
        self.enqueue_kernels(stream, inputs)
        self.enqueue_download(stream)

    def enqueue_download(self, stream: Any) -> None:
        """Enqueue the download of the boxes."""
        self._gpu.cuda.memcpy_dtoh_async(self._host, self._results.address, stream)

    def enqueue_kernels(self, stream: Any, inputs: Inputs) -> None:
        """Enqueue decoding; its boxes stay on the device."""
        tables = (self._keys.address, self._counts.address, self._capacity)
        shape = (self._rows, self._columns)
        self._gpu.cuda.memset_d32_async(self._counts.address, 0, self._batch, stream)
        grid = ((self._rows + 255) // 256, self._batch, 1)
        self._kernels["find_candidates"](grid, stream, inputs.request, inputs.class_mask, inputs.raw, *shape, *tables)
        self._kernels["suppress"](
            (self._batch, 1, 1),
            stream,
            *(inputs.request, inputs.frames, inputs.raw, *shape, *tables),
            *(self._boxes.address, self._groups.address),
            *(self._results.address, self._results.address + self._found_offset, self._room),
            shared_bytes=_shared_bytes(self._capacity),
        )
        self._enqueue_masks(stream, inputs)

    def _enqueue_masks(self, stream: Any, inputs: Inputs) -> None:
        if self._masks is not None:
            found = self._results.address + self._found_offset
            shape = (self._rows, self._columns)
            boxes = Boxes(inputs.request, inputs.frames, inputs.raw, *shape, self._results.address, found, self._room)
            self._masks.enqueue(stream, boxes, inputs.prototypes)

    def collect(self, stream: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]], max_det: int) -> list[Detections]:
        """Return the boxes of the first images, whose work on `stream` is done.

        An image with more candidates than one block can sort is decoded again, by many blocks.

        Args:
            sizes: (height, width) of each source image.
        """
        images = len(sizes)
        if any(self._overflow[:images].tolist()):
            crowded = np.flatnonzero(self._overflow[:images])
            counts = self._candidates[crowded]
            for image, count in zip(crowded.tolist(), counts.tolist(), strict=True):
                self._decode_crowded(stream, inputs, image, count)
            self._enqueue_masks(stream, inputs)
            self.enqueue_download(stream)
            stream.synchronize()
            found = self._with_masks(stream, inputs, sizes, max_det)
            if self._capacity < self._max_capacity:  # the next images of this source will be similar
                self._set_capacity(min(self._max_capacity, _power_of_two(int(counts.max()))))
            return found
        return self._with_masks(stream, inputs, sizes, max_det)

    def _with_masks(
        self, stream: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]], max_det: int
    ) -> list[Detections]:
        found = self._read(len(sizes), max_det)
        if self._masks is None:
            return found
        if self._masks.grow(int(self._mask_bytes[: len(sizes)].max(initial=0))):
            self._enqueue_masks(stream, inputs)
            stream.synchronize()
        drawn = []
        for image, (size, one) in enumerate(zip(sizes, found, strict=True)):
            offsets = self._found_i32[image, : len(one), _MASK].view(np.uint32)
            drawn.append(replace(one, masks=self._masks.read(image, size, one.boxes, offsets)))
        return drawn

    def _read(self, images: int, max_det: int) -> list[Detections]:
        detections = []
        for image, kept in enumerate(self._kept[:images].tolist()):
            count = min(kept, max_det)
            floats = self._found_f32[image, :count]
            detections.append(
                Detections(
                    boxes=floats[:, :4].copy(),
                    scores=floats[:, 4].copy(),
                    class_ids=self._found_i32[image, :count, _CLASS_ID].astype(np.int64),
                    truncated=kept - count,
                )
            )
        return detections

    def _decode_crowded(self, stream: Any, inputs: Inputs, image: int, count: int) -> None:
        """Decode one image of `count` candidates with separate scratch memory."""
        kernels, gpu = self._kernels, self._gpu
        size = max(_SORT_BLOCK, _power_of_two(count))
        sizes = (size * KEY_BYTES, size * BOX_BYTES, size * GROUP_BYTES, (size + 31) // 32 * 4, 4 * _CHUNK, 16)
        scratch = [DeviceMemory(gpu, n) for n in sizes]
        keys, boxes, groups, removed, kept_list, state = (memory.address for memory in scratch)
        raw = inputs.raw + image * self._rows * self._row_bytes
        shape = (self._rows, self._columns)
        gpu.cuda.memset_d32_async(removed, 0, sizes[3] // 4, stream)
        gpu.cuda.memset_d32_async(state, 0, 4, stream)
        grid = ((self._rows + 255) // 256, 1, 1)
        counter = state + 8
        kernels["find_candidates"](grid, stream, inputs.request, inputs.class_mask, raw, *shape, keys, counter, size)
        self._sort(stream, keys, count, size)
        many = (_SCAN_BLOCKS, 1, 1)
        kernels["order_many"](many, stream, inputs.request, raw, *shape, keys, count, boxes, groups)
        summary = self._results.address + image * SUMMARY.itemsize
        found = self._results.address + self._found_offset + image * self._room * FOUND.itemsize
        frame = inputs.frames + image * FRAME.itemsize
        for begin in range(0, count, _CHUNK):
            end = min(begin + _CHUNK, count)
            kernels["suppress_chunk"](
                (1, 1, 1),
                stream,
                *(inputs.request, frame, raw, *shape, keys, count, boxes, groups, removed, begin, end),
                *(state, kept_list, summary, found, self._room),
            )
            if end < count:
                kernels["suppress_rest"](
                    many, stream, inputs.request, end, count, boxes, groups, removed, state, kept_list
                )
        stream.synchronize()
        for memory in scratch:
            memory.close()

    def _sort(self, stream: Any, keys: int, count: int, size: int) -> None:
        """Sort `size` keys, a power of two, of which the first `count` are used (bitonic)."""
        blocks = (size // _SORT_BLOCK, 1, 1)
        self._kernels["pad_keys"]((_SCAN_BLOCKS, 1, 1), stream, keys, count, size)
        self._kernels["sort_blocks"](blocks, stream, keys, 2, _SORT_BLOCK)
        run = 2 * _SORT_BLOCK
        while run <= size:
            step = run // 2
            while step >= _SORT_BLOCK:
                self._kernels["sort_step"](blocks, stream, keys, run, step)
                step //= 2
            self._kernels["sort_blocks"](blocks, stream, keys, run, run)
            run *= 2

    def close(self) -> None:
        """Free the scratch memory."""
        for memory in (self._counts, self._keys, self._boxes, self._groups, self._results):
            memory.close()


def _shared_bytes(capacity: int) -> int:
    return capacity * KEY_BYTES + capacity // 32 * 4


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
