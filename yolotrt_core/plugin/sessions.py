"""What an open engine offers: from network inputs to raw output, and on a GPU from host frames to boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from yolotrt_core.types import Detections, EngineSpec, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.media.frames import DeviceFrame, Frame


class Session(Protocol):
    """An engine ready to run; a context manager that frees it."""

    @property
    def spec(self) -> EngineSpec: ...

    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        """Run one batch.

        Args:
            images: float32 (B, 3, H, W) or (B, H, W, 3) as the spec's input, RGB in 0..1; B, H and W within
                the engine's profiles, or exactly its static shape.

        Returns:
            Output name to array, float32 (or the engine's own float type widened to it).

        Raises:
            UsageError: another shape or dtype, saying what the engine accepts.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class DeviceProgram:
    """How a GPU reads a head's raw output where it lies, for runners that decode without the CPU.

    Attributes:
        output: name of the raw output tensor, (B, rows, columns).
        classes: how many class ids there are.
        source: CUDA C++ without includes that defines `struct Head`, the device twin of the
            postprocessor's `decode`. What it may use and must define is stated in the runner's
            `yolotrt_tensorrt/cuda/kernels/`: prelude.cuh and suppress.cu.
    """

    output: str
    classes: int
    source: str


@runtime_checkable
class DetectingSession(Protocol):
    """What a session may offer beside `Session`: host frames to boxes without a stop on the way.

    Frames are uint8 (H, W, 3) in BGR of any sizes, or `Nv12Frame`; or what the session's own `DecodingSession.decode`
    returned.
    Any number of threads may call one session at once.
    """

    def detect(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> list[Detections]:
        """Return what `infer` and the program's postprocessor would, one Detections per frame."""

    def stream(self, frames: Iterable[Frame], program: DeviceProgram, selection: Selection) -> Iterator[Detections]:
        """Do the same for frames that keep coming; batches are in flight while `frames` is asked for more.

        An exception of `frames` reaches the caller after the results of the frames before it.
        """

    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """Return frame buffers that upload fastest, for a decoder or camera to fill in place."""

    def pinned_copy(self, frame: Frame) -> Frame:
        """Return a copy of the same kind in such a buffer: a thread that decodes takes this off the one that detects.

        A frame on the device is returned as it is.
        """


@runtime_checkable
class PageLockingSession(Protocol):
    """What a session may offer beside `DetectingSession`: frames that another process decodes upload fastest too."""

    def page_lock(self, memory: NDArray[np.uint8]) -> object:
        """Page-lock memory of another owner; views of it count as such where `HostBuffer` says so.

        Returns:
            What undoes it when it goes, which must be before the memory does.

        Raises:
            StageError: the memory cannot be locked.
        """


@runtime_checkable
class DecodingSession(Protocol):
    """What a session may offer beside `DetectingSession`: image files decoded on the device, on any thread."""

    @property
    def decodes_files(self) -> bool:
        """Whether it can here; `decode` knows nothing otherwise."""

    def decode(self, files: Sequence[bytes]) -> Sequence[DeviceFrame | None]:
        """Decode contents of files; None for each that OpenCV should have a try at, broken ones too."""


@runtime_checkable
class TimedSession(Protocol):
    """What a session on a GPU may offer beside `DetectingSession`: the device's own clock."""

    @property
    def graph(self) -> str:
        """How the engine is launched: by a CUDA graph (`capture`, `library`) or `none`."""

    def time_engine(self, batch: int, repeats: int) -> list[float]:
        """Return device milliseconds of the engine alone, for each of `repeats` runs after a warm-up."""

    def time_steps(self, frames: Sequence[Frame], program: DeviceProgram, selection: Selection) -> dict[str, float]:
        """Return device milliseconds of each step of one batch, launched one by one."""
