"""Inputs of the command line: images, videos, cameras and streams."""

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
_CREDENTIALS = re.compile(r"(?<=://).*@")  # greedy: a password may contain `@`
# Some cameras have credentials in the path: rtsp://HOST/user=admin&password=...
_CREDENTIALS_IN_PATH = re.compile(r"(?i)(user|username|pass|passwd|password|pwd|token|key)=[^&/;?]*")
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://")


def find_inputs(path: str) -> list[Path]:
    """List the images and videos of a path, in a fixed order.

    Args:
        path: a file, a folder (not its subfolders), or a pattern with `*`, `?` or `**`.

    Raises:
        UsageError: nothing found, an unsupported file suffix, or no permission.
    """
    named = existing_path(path)
    if named is not None and named.is_dir():
        found = sorted(p for p in named.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        if not found:
            raise UsageError(f"no image or video in the folder `{path}`", hint=_suffix_hint())
        return found
    if named is not None and named.is_file():
        if named.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UsageError(f"unsupported file suffix `{named.suffix}` of `{path}`", hint=_suffix_hint())
        return [named]
    if glob.has_magic(path):
        matches = sorted(Path(p) for p in glob.glob(str(user_path(path)), recursive=True))  # noqa: PTH207 - Path.glob has no absolute patterns
        found = [p for p in matches if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
        if not found:
            raise UsageError(f"no image or video matches the pattern `{redact(path)}`", hint=_suffix_hint())
        return found
    raise UsageError(f"no such file or folder: `{redact(path)}`")


def is_live(source: str) -> bool:
    """Return whether a source is a camera (`camera:0`) or a stream URL (`rtsp://...`)."""
    return bool(CAMERA.fullmatch(source)) or source.lower().startswith(_STREAMS)


def live_name(source: str) -> str:
    """Return a file name for outputs of a live source; of a URL, which may contain a password, only the host."""
    camera = CAMERA.fullmatch(source)
    if camera:
        return f"camera-{camera[1]}"
    try:
        host = urllib.parse.urlsplit(source).hostname
    except ValueError:  # incomplete IPv6 address
        host = None
    return "stream-" + re.sub(r"[^\w.-]", "_", host or "unknown")


def redact(source: str | Path) -> str:
    """Return a source for messages: a URL without user, password and query."""
    text = str(source)
    if "://" not in text:
        return text
    address, query, _ = _CREDENTIALS.sub("***@", text).partition("?")
    return _CREDENTIALS_IN_PATH.sub(r"\1=***", address) + ("?***" if query else "")


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _suffix_hint() -> str:
    return "supported: " + " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
