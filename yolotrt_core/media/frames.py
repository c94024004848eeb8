"""Frames other than BGR images on the host, and host memory that arrays share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from yolotrt_core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A BGR image as OpenCV reads it is uint8 (H, W, 3).
Frame: TypeAlias = "NDArray[np.uint8] | Nv12Frame | DeviceFrame"


@dataclass(frozen=True, slots=True)
class Nv12Frame:
    """An image in NV12, as video decoders and cameras give it: BT.601, limited range.

    Said, not guessed: its array cannot be told from a grey image.

    Attributes:
        planes: uint8 (H * 3 / 2, W) with even H and W: brightness, then colour at half the size, U and V in turn.
    """

    planes: NDArray[np.uint8]

    def __post_init__(self) -> None:
        """Refuse what cannot be such planes.

        Raises:
            UsageError: saying what was found.
        """
        import numpy as np

        planes = self.planes
        is_array = isinstance(planes, np.ndarray)
        if (
            not is_array
            or planes.dtype != np.uint8
            or planes.ndim != 2
            or not planes.size
            or planes.shape[0] % 3
            or planes.shape[1] % 2
        ):
            found = f"{planes.dtype} {planes.shape}" if is_array else type(planes).__name__
            raise UsageError(f"expected NV12 as uint8 (H * 3 / 2, W) with even H and W, found {found}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of the image."""
        rows, width = self.planes.shape
        return rows // 3 * 2, width, 3

    def to_host(self) -> NDArray[np.uint8]:
        """Return the image in BGR, uint8 (H, W, 3)."""
        import cv2
        import numpy as np

        return np.asarray(cv2.cvtColor(self.planes, cv2.COLOR_YUV2BGR_NV12), np.uint8)


class DeviceFrame(Protocol):
    """An image in a device's memory, taken wherever its session takes host frames.

    Attributes:
        shape: (H, W, 3), BGR.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def to_host(self) -> NDArray[np.uint8]:
        """Return its pixels in host memory."""


class HostBuffer:
    """Memory on the host that NumPy arrays view; `release` is called on any thread once the last of them is gone.

    Attributes:
        page_locked: whether a GPU copies from it directly.
    """

    def __init__(self, address: int, size: int, release: Callable[[], object], *, page_locked: bool) -> None:
        self.page_locked = page_locked
        self._release = release
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}

    def __del__(self) -> None:
        self._release()
