"""Frames in NV12 or device memory, and host memory shared with arrays."""

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
    """An NV12 image from a video decoder or camera: BT.601, limited range.

    A separate type, since its array looks like a grayscale image.

    Attributes:
        planes: uint8 (H * 3 / 2, W) with even H and W: luma, then interleaved U and V at half the size.
    """

    planes: NDArray[np.uint8]

    def __post_init__(self) -> None:
        """Validate the planes.

        Raises:
            UsageError: wrong dtype or shape.
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
    """An image in device memory, accepted by its session instead of a host frame.

    Attributes:
        shape: (H, W, 3), BGR.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def to_host(self) -> NDArray[np.uint8]:
        """Return its pixels in host memory."""


class HostBuffer:
    """Host memory for NumPy arrays; `release` is called on any thread after the last array is freed.

    Attributes:
        page_locked: whether a GPU can copy from it directly.
    """

    def __init__(self, address: int, size: int, release: Callable[[], object], *, page_locked: bool) -> None:
        self.page_locked = page_locked
        self._release = release
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}

    def __del__(self) -> None:
        self._release()
