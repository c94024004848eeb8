"""Reading of image files."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from yolotrt_core.console.notices import warn_once
from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_core.media.jpeg_header import upright_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.media import jpeg_end

    # Allocates an uninitialized uint8 array.
    Room = Callable[[tuple[int, ...]], NDArray[np.uint8]]

_HEAD = 16 << 10  # bytes of a JPEG file that usually contain its size
_SAMPLE = 48  # files
_FEW = 0.05
_OPENCV_VERSION = re.compile(r"""^opencv_version\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_PNG = b"\x89PNG\r\n\x1a\n"
_JP2, _JP2_SIZE = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_MAYBE_16_BIT = (b"II*\0", b"MM\0*", b"P2", b"P3", b"P5", b"P6")  # TIFF and PNM; of PNG the header tells
FULL_DEPTH = 16  # bits
_USUAL_DEPTH = 12  # of cameras and medical devices that write 16-bit files


def read(
    path: Path,
    room: Room | None = None,
    size: tuple[int, int] | None = None,
    depth: int = FULL_DEPTH,
    *,
    alpha: bool = False,
) -> NDArray[np.uint8]:
    """Read an image; of an animation the first frame, with a warning.

    Args:
        room: allocates the memory of the pixels, for instance page-locked. Most JPEG files are decoded directly
            into it: fresh memory per image costs up to a tenth of decoding.
        size: result of `plain_jpeg_size`, if known.
        depth: bits that the values of 16-bit files have, 9 to 16; the brightest becomes 255.
        alpha: return the alpha channel of files that have one; without `room`.

    Returns:
        uint8 (H, W, 3), BGR, rotated by its EXIF orientation; or (H, W, 4), BGRA.

    Raises:
        UsageError: it cannot be read, is empty, is not an image, or rows are missing.
    """
    import numpy as np

    if room is not None and size is not None and (placed := _read_into(path, size, room)) is not None:
        return placed
    try:
        encoded = read_file(path)
    except OSError as err:
        raise UsageError(f"cannot read the image `{path}`: {os_error_reason(err)}") from err
    if not encoded:
        raise UsageError(f"the image `{path}` is an empty file")
    if room is not None and size is None:
        size = upright_size(encoded)
        if size is not None and (placed := _read_into(path, size, room)) is not None:
            return placed
    frame = _decode(path, encoded, depth)
    if alpha:
        return _with_alpha(path, encoded, frame)
    if room is None:
        return frame
    copy = room(frame.shape)
    np.copyto(copy, frame)
    return copy


def _decode(path: Path, encoded: bytes, depth: int) -> NDArray[np.uint8]:
    if encoded.startswith(_JPEG) and not encoded.endswith(_JPEG_END):
        try:
            from yolotrt_core.media.jpeg_end import complete

            completed = complete(encoded)
        except ValueError:  # complete, with other data after its end
            pass
        else:
            return _decode_completed(path, completed)
    if encoded.startswith(_PNG) and encoded[12:16] == b"IHDR":
        if 0 in (int.from_bytes(encoded[i : i + 4]) for i in (16, 20)):
            raise UsageError(f"the image `{path}` has no pixels")  # libpng would print its own message
        is_deep = encoded[24:25] > b"\x08"
    else:
        is_deep = encoded.startswith(_MAYBE_16_BIT) or _is_16_bit_jp2(encoded)
    from yolotrt_core.media.animation import has_pages, is_animated

    if is_animated(encoded):
        warn_once(f"`{path}` is animated: only its first frame is used")
    elif has_pages(encoded):
        warn_once(f"`{path}` has several pages: only the first is used")
    scaled = _decode_deep(path, encoded, depth) if is_deep else None
    return _decode_as_8_bit(path, encoded) if scaled is None else scaled


def _is_16_bit_jp2(encoded: bytes) -> bool:
    """Return whether a JPEG 2000 file states 16 bits (ITU-T T.800, A.5.1); OpenCV scales by what it states."""
    size = encoded.find(_JP2_SIZE) if encoded.startswith(_JP2) else -1
    return size >= 0 and encoded[size + 42 : size + 43] in (b"\x0f", b"\x8f")


def _decode_as_8_bit(path: Path, encoded: bytes) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    try:
        frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as err:
        raise UsageError(f"cannot decode the image `{path}`: {err.err or err}") from err
    if frame is None or 0 in frame.shape:
        hint = f"the file may be truncated, or of a format that OpenCV {cv2.__version__} does not decode"
        raise UsageError(f"cannot decode the image `{path}`", hint=hint)
    return np.asarray(frame, dtype=np.uint8)


def _with_alpha(path: Path, encoded: bytes, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add the alpha channel of a file that has one; of 16 bits it is scaled by all of them."""
    import cv2
    import numpy as np

    if encoded.startswith(_JPEG):
        return frame
    try:
        whole = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        whole = None
    if whole is None or whole.ndim != 3 or whole.shape[2] != 4 or whole.dtype not in (np.uint8, np.uint16):
        return frame
    alpha = whole[..., 3] if whole.dtype == np.uint8 else whole[..., 3] >> 8
    # OpenCV does not rotate what it reads unchanged.
    if whole.shape[:2] != frame.shape[:2] or (whole.dtype == np.uint8 and (whole[..., :3] != frame).any()):
        raise UsageError(
            f"the image `{path}` has an alpha channel and is rotated by its EXIF orientation",
            hint="save it upright, without the orientation",
        )
    return np.dstack((frame, alpha.astype(np.uint8)))


def _decode_completed(path: Path, completed: jpeg_end.Completed | None) -> NDArray[np.uint8]:
    """Decode a JPEG file that lacks its end, with a warning if no pixel is missing."""
    import numpy as np

    hint = "copy the file again, or save it again with another program"
    if completed is None:
        raise UsageError(f"cannot decode the image `{path}`: it is truncated", hint=hint)
    first, *others = (_decode_as_8_bit(path, probe) for probe in completed.probes)
    for other in others:
        differing = np.flatnonzero((first != other).any(axis=(1, 2)))
        if len(differing):
            raise UsageError(
                f"cannot decode the image `{path}`: it is truncated, the rows from {differing[0]} on are missing",
                hint=hint,
            )
    warn_once(f"`{path}` lacks its last bytes, but no pixels: it is used")
    return _decode_as_8_bit(path, completed.data)


def _decode_deep(path: Path, encoded: bytes, depth: int) -> NDArray[np.uint8] | None:
    """Scale a 16-bit image whose values have fewer bits; None if it is another or all bits are used."""
    import cv2
    import numpy as np

    try:
        values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # reported when it is decoded again
        return None
    if values is None or values.dtype != np.uint16:
        return None
    if depth < FULL_DEPTH:
        return np.asarray(np.minimum(values >> depth - 8, 255), dtype=np.uint8)
    brightest = int(values.max(initial=0))
    if 255 < brightest < 1 << _USUAL_DEPTH:
        warn_once(
            f"`{path}` and maybe others have 16 bits per value, of which at most {brightest.bit_length()} are used: "
            f"they are dark; if they are {_USUAL_DEPTH}-bit images, pass `--image-bits {_USUAL_DEPTH}`",
            key="bit depth",
        )
    return None


def attempt(
    path: Path,
    room: Room | None = None,
    size: tuple[int, int] | None = None,
    depth: int = FULL_DEPTH,
    *,
    alpha: bool = False,
) -> NDArray[np.uint8] | UsageError:
    """Return the result of `read`, or its error."""
    try:
        return read(path, room, size, depth, alpha=alpha)
    except UsageError as err:
        return err


def plain_jpeg_size(path: Path) -> tuple[int, int] | None:
    """Return `upright_size` of a file, usually from its start and end only.

    Raises:
        OSError: it cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        length = os.lseek(file, 0, os.SEEK_END)
        ends = os.pread(file, _HEAD, 0) + os.pread(file, 2, length - 2) if length > _HEAD else b""
    finally:
        os.close(file)
    return upright_size(ends) or upright_size(read_file(path))


def plain_jpeg_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Return (height, width) of sampled files; empty unless nearly all are plain JPEG (`upright_size`)."""
    sizes, others = [], 0
    for path in Random(0).sample(paths, min(len(paths), _SAMPLE)):  # a regular sample could hit one kind of file only
        try:
            size = plain_jpeg_size(path)
        except OSError:
            continue
        if size is None:
            others += 1
        else:
            sizes.append(size)
    return sizes if others <= len(sizes) * _FEW else []


def read_file(path: Path) -> bytes:
    """Return a file's bytes in four system calls.

    Each call releases the GIL and waits to get it back: more calls, as in `Path.read_bytes()`, halve the rate of
    decoding threads.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def _read_into(path: Path, size: tuple[int, int], room: Room) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG file of this size into allocated memory; None if OpenCV cannot."""
    import cv2

    if not _imread_fills():
        return None
    target = room((*size, 3))
    try:
        frame = cv2.imread(str(path), dst=target)
    except cv2.error:
        return None
    # OpenCV allocates other memory if the file has a different size.
    return target if frame is not None and frame.ctypes.data == target.ctypes.data else None


@cache
def opencv_version() -> str:
    """Return the version of OpenCV without importing it; empty if not installed."""
    spec = importlib.util.find_spec("cv2")
    if spec is None or spec.origin is None:
        return ""
    file = Path(spec.origin).with_name("version.py")
    told = _OPENCV_VERSION.search(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None
    if told is not None:
        return told[1]
    import cv2

    return str(cv2.__version__)


@cache
def _imread_fills() -> bool:
    """Return whether OpenCV's `imread` accepts an array to fill (4.11 and later)."""
    import cv2

    return "dst" in (cv2.imread.__doc__ or "")
