"""Reading of image files, with errors that say what was wrong."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_core.media.jpeg_header import upright_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    # Makes an uninitialised uint8 array of a shape.
    Room = Callable[[tuple[int, ...]], NDArray[np.uint8]]

_HEAD = 16 << 10  # bytes of a JPEG file that mostly say its size
_SAMPLE = 48  # files
_FEW = 0.05
_OPENCV_VERSION = re.compile(r"""^opencv_version\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_PNG = b"\x89PNG\r\n\x1a\n"


def read(path: Path, room: Room | None = None, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image.

    Args:
        room: gives the memory for the pixels, for instance what a GPU uploads fastest. Most JPEG files are decoded
            right into it: fresh memory for each of many threads' images costs as much as a tenth of decoding.
        size: what `plain_jpeg_size` says of the file, if it was asked.

    Returns:
        uint8 (H, W, 3), BGR, turned upright by its EXIF orientation.

    Raises:
        UsageError: it cannot be read, is empty, or is no image.
    """
    import cv2
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
    if (
        encoded.startswith(_PNG)
        and encoded[12:16] == b"IHDR"
        and 0 in (int.from_bytes(encoded[i : i + 4]) for i in (16, 20))
    ):
        raise UsageError(f"the image `{path}` has no pixels")  # libpng would print its own words about it
    try:
        frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as err:
        raise UsageError(f"`{path}` is not an image OpenCV can read: {err.err or err}") from err
    if frame is None or 0 in frame.shape:
        raise UsageError(f"`{path}` is not an image OpenCV can read", hint="is the file complete?")
    if room is None:
        return np.asarray(frame, dtype=np.uint8)
    copy = room(frame.shape)
    np.copyto(copy, frame)
    return copy


def attempt(
    path: Path, room: Room | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8] | UsageError:
    """Return what `read` does, or the error that it raises."""
    try:
        return read(path, room, size)
    except UsageError as err:
        return err


def plain_jpeg_size(path: Path) -> tuple[int, int] | None:
    """Return `upright_size` of a file, mostly from its two ends alone.

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
    """Return (height, width) in pixels of some of the files; none unless nearly all are plain JPEG (`upright_size`)."""
    sizes, others = [], 0
    for path in Random(0).sample(paths, min(len(paths), _SAMPLE)):  # every nth file may be of one kind
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

    Each call releases the interpreter and may wait to get it back: among threads that decode, `Path.read_bytes()`,
    which makes more calls, halves their rate.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def _read_into(path: Path, size: tuple[int, int], room: Room) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG file of this size into memory made for it; None where OpenCV cannot."""
    import cv2

    if not _imread_fills():
        return None
    target = room((*size, 3))
    try:
        frame = cv2.imread(str(path), dst=target)
    except cv2.error:
        return None
    # OpenCV takes other memory if the file turns out to have another size.
    return target if frame is not None and frame.ctypes.data == target.ctypes.data else None


@cache
def opencv_version() -> str:
    """Return the version of OpenCV, empty without it; its wheels tell it in a file, so that nothing is imported."""
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
    """Say whether this OpenCV's `imread` takes the array to fill (4.11 and later)."""
    import cv2

    return "dst" in (cv2.imread.__doc__ or "")
