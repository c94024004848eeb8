"""Reads pictures and videos named on a command line, with errors that say what was wrong."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_core.jpeg import upright_size
from yolotrt_core.user_paths import existing_path, user_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    # Makes an uninitialised uint8 array of a shape.
    Room = Callable[[tuple[int, ...]], NDArray[np.uint8]]

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

_BIG = 1 << 30  # bytes
_HEAD = 16 << 10  # bytes of a JPEG file that mostly say its size
_SAMPLE = 48  # files
_FEW = 0.05
_PNG = b"\x89PNG\r\n\x1a\n"
_CAMERA = re.compile(r"camera:(\d{1,3})")
_CREDENTIALS = re.compile(r"(?<=://).*@")  # up to the last one: a password may hold any sign
# Some cameras take them in the path: rtsp://HOST/user=admin&password=...
_CREDENTIALS_IN_PATH = re.compile(r"(?i)(user|username|pass|passwd|password|pwd|token|key)=[^&/;?]*")
_OPENCV_VERSION = re.compile(r"""^opencv_version\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://")


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Size of a video's frames in pixels, frames per second, and how many frames (0: unknown)."""

    width: int
    height: int
    fps: float
    frames: int


def find(path: str) -> list[Path]:
    """List the pictures and videos that a path means, in a fixed order.

    Args:
        path: a file, a folder (not its subfolders), or a pattern with `*`, `?` or `**`.

    Raises:
        UsageError: nothing there, nothing that is a picture or video by its ending, or the system does not let look.
    """
    named = existing_path(path)
    if named is not None and named.is_dir():
        found = sorted(p for p in named.iterdir() if p.suffix.lower() in PICTURES | VIDEOS)
        if not found:
            raise UsageError(f"no picture or video in the folder `{path}`", hint=_endings())
        return found
    if named is not None and named.is_file():
        if named.suffix.lower() not in PICTURES | VIDEOS:
            raise UsageError(f"`{path}` is no picture or video by its ending `{named.suffix}`", hint=_endings())
        return [named]
    if glob.has_magic(path):
        matches = sorted(Path(p) for p in glob.glob(str(user_path(path)), recursive=True))  # noqa: PTH207 - Path.glob has no absolute patterns
        found = [p for p in matches if p.suffix.lower() in PICTURES | VIDEOS]
        if not found:
            raise UsageError(f"no picture or video matches the pattern `{shown(path)}`", hint=_endings())
        return found
    raise UsageError(f"there is no file or folder `{shown(path)}`")


def is_live(source: str) -> bool:
    """Tell a camera (`camera:0`) or stream address (`rtsp://...`) from a path."""
    return bool(_CAMERA.fullmatch(source)) or source.lower().startswith(_STREAMS)


def live_name(source: str) -> str:
    """Return a file name for what a live source gives; addresses may hold passwords, so only the host stays."""
    camera = _CAMERA.fullmatch(source)
    if camera:
        return f"camera-{camera[1]}"
    try:
        host = urllib.parse.urlsplit(source).hostname
    except ValueError:  # half an IPv6 address
        host = None
    return "stream-" + re.sub(r"[^\w.-]", "_", host or "unknown")


def shown(source: str | Path) -> str:
    """Return a source as messages may show it: an address without user, password and query, which may hold a key."""
    text = str(source)
    if "://" not in text:
        return text
    address, query, _ = _CREDENTIALS.sub("***@", text).partition("?")
    return _CREDENTIALS_IN_PATH.sub(r"\1=***", address) + ("?***" if query else "")


def is_video(path: Path) -> bool:
    """Tell a video from a picture, by the ending."""
    return path.suffix.lower() in VIDEOS


def read(path: Path, room: Room | None = None, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a picture.

    Args:
        room: gives the memory for the pixels, for instance what a GPU uploads fastest. Most JPEG files are decoded
            right into it: fresh memory for each of many threads' pictures costs as much as a tenth of decoding.
        size: what `plain_jpeg_size` says of the file, if it was asked.

    Returns:
        uint8 (H, W, 3), BGR, turned upright by its EXIF orientation.

    Raises:
        UsageError: it cannot be read, is empty, or is no picture.
    """
    import cv2
    import numpy as np

    if room is not None and size is not None and (placed := _read_into(path, size, room)) is not None:
        return placed
    try:
        encoded = contents(path)
    except OSError as err:
        raise UsageError(f"cannot read the picture `{path}`: {os_error_reason(err)}") from err
    if not encoded:
        raise UsageError(f"the picture `{path}` is an empty file")
    if room is not None and size is None:
        size = upright_size(encoded)
        if size is not None and (placed := _read_into(path, size, room)) is not None:
            return placed
    if (
        encoded.startswith(_PNG)
        and encoded[12:16] == b"IHDR"
        and 0 in (int.from_bytes(encoded[i : i + 4]) for i in (16, 20))
    ):
        raise UsageError(f"the picture `{path}` has no pixels")  # libpng would print its own words about it
    with quiet_opencv():
        try:
            frame = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as err:
            raise UsageError(f"`{path}` is not a picture OpenCV can read: {err.err or err}") from err
    if frame is None or 0 in frame.shape:
        raise UsageError(f"`{path}` is not a picture OpenCV can read", hint="is the file complete?")
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
    return upright_size(ends) or upright_size(contents(path))


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


def contents(path: Path) -> bytes:
    """Read a file in few calls that let go of the interpreter: after each, a thread among many waits for its turn."""
    size_of, close = _unparted()
    file = os.open(path, os.O_RDONLY)
    try:
        size = size_of(file, 0, os.SEEK_END)
        if not 0 <= size <= _BIG:  # a folder may say anything
            size = os.fstat(file).st_size
        return os.pread(file, size, 0)
    finally:
        close(file)


@cache
def _unparted() -> tuple[Callable[[int, int, int], int], Callable[[int], Any]]:
    """Return `lseek` and `close` that keep the interpreter, as what waits for no disk may."""
    library = ctypes.PyDLL(None)
    library.lseek.argtypes, library.lseek.restype = (ctypes.c_int, ctypes.c_ssize_t, ctypes.c_int), ctypes.c_ssize_t
    library.close.argtypes = (ctypes.c_int,)
    return library.lseek, library.close


def _read_into(path: Path, size: tuple[int, int], room: Room) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG file of this size into memory made for it; None where OpenCV cannot."""
    import cv2

    if not _imread_fills():
        return None
    target = room((*size, 3))
    with quiet_opencv():
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


@contextmanager
def open_video(source: Path | str) -> Iterator[tuple[VideoFacts, Iterator[NDArray[np.uint8]]]]:
    """Open a video.

    Args:
        source: a file, or a live source as `is_live` tells them.

    Yields:
        Its facts, and its frames: uint8 (H, W, 3) BGR each, one in memory at a time.

    Raises:
        UsageError: it cannot be opened or holds no frame.
    """
    # Read once, when FFmpeg is first used; its complaints are the UsageError's to make.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    with quiet_opencv():
        camera = _CAMERA.fullmatch(str(source))
        capture = cv2.VideoCapture(int(camera[1]) if camera else str(source))
    try:
        if not capture.isOpened():
            if is_live(str(source)):
                raise UsageError(f"cannot open the live source `{shown(source)}`", hint="is it there, and free?")
            raise UsageError(
                f"`{shown(source)}` is not a video OpenCV can read", hint="is the file complete, its codec known?"
            )
        facts = VideoFacts(
            width=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            height=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            fps=capture.get(cv2.CAP_PROP_FPS) or 25.0,
            frames=max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))),
        )
        yield facts, _frames(capture, source)
    finally:
        capture.release()


def count_frames(path: Path) -> int:
    """Return how many frames a video file says it holds; 0 if it cannot be opened."""
    import cv2

    with quiet_opencv():
        capture = cv2.VideoCapture(str(path))
        try:
            return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
        finally:
            capture.release()


def _frames(capture: Any, source: Path | str) -> Iterator[NDArray[np.uint8]]:
    count = 0
    while True:
        good, frame = capture.read()
        if not good:
            break
        count += 1
        yield frame
    if count == 0:
        raise UsageError(f"the video `{shown(source)}` holds no frame that can be read")


class _Quiet:
    """OpenCV's log level is the process's: the first thread that wants silence sets it, the last one restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._before: Any = None

    def __enter__(self) -> None:
        logging = _opencv_logging()
        with self._lock:
            self._wanted += 1
            if self._wanted == 1 and logging is not None:
                self._before = logging.getLogLevel()
                logging.setLogLevel(logging.LOG_LEVEL_SILENT)

    def __exit__(self, *raised: object) -> None:
        logging = _opencv_logging()
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0 and logging is not None:
                logging.setLogLevel(self._before)


_quiet = _Quiet()


def quiet_opencv() -> AbstractContextManager[None]:
    """Keep OpenCV's own complaints off standard error: the UsageError says the same better."""
    return _quiet


def _opencv_logging() -> Any:
    import cv2

    return getattr(getattr(cv2, "utils", None), "logging", None)


def _endings() -> str:
    return "known endings: " + " ".join(sorted(PICTURES | VIDEOS))
