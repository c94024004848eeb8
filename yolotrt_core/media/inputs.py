"""Images, videos, cameras and streams as they are named on a command line."""

from __future__ import annotations

import glob
import re
import urllib.parse
from pathlib import Path

from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, user_path

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
CAMERA = re.compile(r"camera:(\d{1,3})")
_CREDENTIALS = re.compile(r"(?<=://).*@")  # up to the last one: a password may hold any sign
# Some cameras take them in the path: rtsp://HOST/user=admin&password=...
_CREDENTIALS_IN_PATH = re.compile(r"(?i)(user|username|pass|passwd|password|pwd|token|key)=[^&/;?]*")
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://")


def find_inputs(path: str) -> list[Path]:
    """List the images and videos that a path means, in a fixed order.

    Args:
        path: a file, a folder (not its subfolders), or a pattern with `*`, `?` or `**`.

    Raises:
        UsageError: nothing there, nothing that is an image or video by its ending, or the system does not let look.
    """
    named = existing_path(path)
    if named is not None and named.is_dir():
        found = sorted(p for p in named.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        if not found:
            raise UsageError(f"no image or video in the folder `{path}`", hint=_endings())
        return found
    if named is not None and named.is_file():
        if named.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UsageError(f"`{path}` is no image or video by its ending `{named.suffix}`", hint=_endings())
        return [named]
    if glob.has_magic(path):
        matches = sorted(Path(p) for p in glob.glob(str(user_path(path)), recursive=True))  # noqa: PTH207 - Path.glob has no absolute patterns
        found = [p for p in matches if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
        if not found:
            raise UsageError(f"no image or video matches the pattern `{redact(path)}`", hint=_endings())
        return found
    raise UsageError(f"there is no file or folder `{redact(path)}`")


def is_live(source: str) -> bool:
    """Tell a camera (`camera:0`) or stream address (`rtsp://...`) from a path."""
    return bool(CAMERA.fullmatch(source)) or source.lower().startswith(_STREAMS)


def live_name(source: str) -> str:
    """Return a file name for what a live source gives; addresses may hold passwords, so only the host stays."""
    camera = CAMERA.fullmatch(source)
    if camera:
        return f"camera-{camera[1]}"
    try:
        host = urllib.parse.urlsplit(source).hostname
    except ValueError:  # half an IPv6 address
        host = None
    return "stream-" + re.sub(r"[^\w.-]", "_", host or "unknown")


def redact(source: str | Path) -> str:
    """Return a source as messages may show it: an address without user, password and query, which may hold a key."""
    text = str(source)
    if "://" not in text:
        return text
    address, query, _ = _CREDENTIALS.sub("***@", text).partition("?")
    return _CREDENTIALS_IN_PATH.sub(r"\1=***", address) + ("?***" if query else "")


def is_video(path: Path) -> bool:
    """Tell a video from an image, by the ending."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _endings() -> str:
    return "known endings: " + " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
