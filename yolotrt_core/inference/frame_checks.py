"""Validation of the frames and thresholds passed to a detector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from yolotrt_core.errors import UsageError
from yolotrt_core.media.frames import Nv12Frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.types import Selection


def checked_frames(frames: Iterable[Any], *, alpha: bool = False) -> Iterator[Any]:
    """Yield validated frames as BGR or BGRA images on the host.

    Args:
        frames: uint8 (H, W, 3) each, or `Nv12Frame`. alpha: (H, W, 4) is allowed.

    Raises:
        UsageError: in place of the first invalid frame, with its index.
    """
    for number, given in enumerate(frames):
        frame = given.to_host() if isinstance(given, Nv12Frame) else given
        if not is_image(frame) and not (alpha and is_image(frame, 4)):
            refuse_frame(number, frame)
        yield frame


def is_image(frame: Any, channels: int = 3) -> TypeGuard[NDArray[np.uint8]]:
    """Return whether a frame is a BGR image on the host, uint8 (H, W, 3), or BGRA with 4 `channels`."""
    import numpy as np

    return (
        isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (channels,) and frame.size > 0
    )


def refuse_missing_frames(frames: Sequence[Any]) -> None:
    """Refuse None among frames, for sessions that validate frames themselves."""
    for number, frame in enumerate(frames):
        if frame is None:
            refuse_frame(number, frame)


def refuse_frame(number: int, frame: Any) -> NoReturn:
    """Raise the error of an invalid frame.

    Raises:
        UsageError: with the frame's index.
    """
    import numpy as np

    is_array = isinstance(frame, np.ndarray)
    found = f"{frame.dtype} {frame.shape}" if is_array else type(frame).__name__
    hint = None
    if frame is None:
        hint = "`cv2.imread` returns None for a file it cannot read"
    elif is_array and frame.ndim == 2 and frame.dtype == np.uint8:
        hint = "pass a single image as a list, convert grayscale with `cv2.cvtColor`, and wrap NV12 in `Nv12Frame`"
    raise UsageError(f"frame {number}: expected uint8 (H, W, 3) in BGR, found {found}", hint=hint)


def refuse_selection(selection: Selection, labels: Sequence[str]) -> None:
    """Validate thresholds and class ids.

    Raises:
        UsageError: a value out of range.
    """
    for name, share in (("conf", selection.conf), ("iou", selection.iou)):
        if not issubclass(type(share), Real) or not 0 <= share <= 1:
            raise UsageError(f"`{name}`: expected a number from 0 to 1, found {share!r}")
    if not _is_integer(selection.max_det) or selection.max_det < 0:
        raise UsageError(f"`max_det`: expected an integer of at least 0, found {selection.max_det!r}")
    classes: Any = selection.classes
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Sequence) or not all(map(_is_integer, classes)):
        raise UsageError(
            f"`classes`: expected a tuple of class ids, found {classes!r}",
            hint=f"the model has classes 0 to {len(labels) - 1}; for example `classes=(0,)`, or () for all",
        )
    beyond = [c for c in classes if not 0 <= c < len(labels)]
    if beyond:
        raise UsageError(f"class {beyond[0]} does not exist: the model has classes 0 to {len(labels) - 1}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
