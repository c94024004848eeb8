"""Sessions: open engines, from network inputs to raw output, and on a GPU from host frames to boxes."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from yolotrt_core.types import Detections, EngineSpec, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.media.frames import DeviceFrame, Frame


@dataclass(frozen=True, slots=True)
class DeviceProgram:
    """GPU code that decodes a head's raw output in device memory.

    Attributes:
        output: name of the raw output tensor, (B, rows, columns), or (B, columns, rows) with `rows_last`.
        classes: number of classes.
        source: CUDA C++ without includes that defines `struct Head`, the device twin of the
            postprocessor's `decode`. What it may use and must define is stated in the runner's
            `yolotrt_tensorrt/cuda/kernels/`: prelude.cuh, suppress.cu and masks.cu.
        prototypes: name of the output with the prototypes of masks, (B, K, h, w); empty for a head without masks.
        rows_last: whether the boxes are the last dimension of the output. `Head.rows` counts them in any case.
    """

    output: str
    classes: int
    source: str
    prototypes: str = ""
    rows_last: bool = False


class Session(abc.ABC):
    """An engine ready to run; a context manager that frees it.

    A session that sets one of the capabilities implements the methods that need it; `detects` only for an input of
    three channels. Frames are uint8 (H, W, 3) in BGR of any sizes, `Nv12Frame`, or what `decode` returned. Any number
    of threads may call a session that `detects`.

    Attributes:
        spec: the engine's spec.
        detects: capability: `detect`, `stream`, `pinned_frames` and `pinned_copy` work.
        locks_pages: capability: `page_lock` works. is_timed: capability: `time_engine` and `time_steps` work.
        decodes_files: capability: `decode` works.
        graph: how the engine is launched: by a CUDA graph (`capture`, `library`) or `none`; None off a GPU.
    """

    spec: EngineSpec
    detects: bool = False
    locks_pages: bool = False
    is_timed: bool = False

    @property
    def decodes_files(self) -> bool:
        return False

    @property
    def graph(self) -> str | None:
        return None

    @abc.abstractmethod
    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        """Run one batch.

        Args:
            images: float32 (B, C, H, W) or (B, H, W, C) as the spec's input, in 0..1; B, H and W within
                the engine's profiles, or exactly its static shape.

        Returns:
            Output name to array, float32 (or the engine's own float type widened to it).

        Raises:
            UsageError: another shape or dtype; states what the engine accepts.
        """

    def close(self) -> None:  # noqa: B027 - a session without resources of its own needs none
        """Free the engine; more than one call is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def detect(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> list[Detections]:
        """Return what `infer` and the program's postprocessor would, one Detections per frame."""
        raise NotImplementedError

    def stream(self, frames: Iterable[Frame], program: DeviceProgram, selection: Selection) -> Iterator[Detections]:
        """Detect on a stream of frames, with several batches in flight.

        An exception of `frames` reaches the caller after the results of the frames before it.
        """
        raise NotImplementedError

    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """Return frame buffers that upload fastest, for a decoder or camera to fill in place."""
        raise NotImplementedError

    def pinned_copy(self, frame: Frame) -> Frame:
        """Return a copy of a frame in such a buffer; a frame on the device is returned as it is."""
        raise NotImplementedError

    def page_lock(self, memory: NDArray[np.uint8]) -> object:
        """Page-lock memory of another owner; `HostBuffer` marks views of it.

        Returns:
            An object that unlocks the memory when it is freed, which must be before the memory is.

        Raises:
            StageError: the memory cannot be locked.
        """
        raise NotImplementedError

    def decode(self, files: Sequence[bytes]) -> Sequence[DeviceFrame | None]:
        """Decode contents of image files on the device, on any thread; None for each file to decode with OpenCV."""
        raise NotImplementedError

    def time_engine(self, batch: int, repeats: int) -> list[float]:
        """Return device milliseconds of the engine alone, for each of `repeats` runs after a warm-up."""
        raise NotImplementedError

    def time_steps(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> dict[str, float]:
        """Return device milliseconds of each step of one batch, launched one by one."""
        raise NotImplementedError
