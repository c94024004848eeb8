"""Inputs of the command line: images, videos, cameras and streams."""

from __future__ import annotations

import glob
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path

from yolotrt_core.console.notices import warn_once
from yolotrt_core.console.text import counted, printable
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.media.animation import is_animated_gif

# What OpenCV decodes to 8 bits; a few depend on how it was built, and then each such file is an error.
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pam", ".pbm", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp",
})  # fmt: skip
# Suffix of the annotated copy of an image whose format OpenCV does not write, or not in colour.
_COPY_SUFFIXES = {
    ".jfif": ".jpg", ".mpo": ".jpg", **dict.fromkeys((".avif", ".gif", ".pam", ".pbm", ".pfm", ".pgm"), ".png"),
}  # fmt: skip
# Labels, descriptions and files of systems among images, which need no warning.
_NO_MEDIA = frozenset({
    "", ".cache", ".csv", ".data", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".names", ".txt", ".xml",
    ".yaml", ".yml",
})  # fmt: skip
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
CAMERA = re.compile("camera:([0-9]{1,3})")
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
        found = select_files(sorted(named.iterdir()), IMAGE_SUFFIXES | VIDEO_SUFFIXES, path)
        if not found:
            raise UsageError(f"no image or video in the folder `{path}`", hint=_suffix_hint())
        return found
    if named is not None and named.is_file():
        if named.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UsageError(f"unsupported file suffix `{named.suffix}` of `{path}`", hint=_suffix_hint())
        return [named]
    if glob.has_magic(path):
        matches = sorted(Path(p) for p in glob.glob(str(user_path(path)), recursive=True))  # noqa: PTH207 - Path.glob has no absolute patterns
        found = select_files(matches, IMAGE_SUFFIXES | VIDEO_SUFFIXES, path)
        if not found:
            raise UsageError(f"no image or video matches the pattern `{redact(path)}`", hint=_suffix_hint())
        return found
    raise UsageError(f"no such file or folder: `{redact(path)}`")


def select_files(files: Iterable[Path], suffixes: Set[str], where: str | Path) -> list[Path]:
    """Return the files with these suffixes; a warning counts the others that may be media.

    Args:
        where: their folder or pattern, for the warning.
    """
    selected: list[Path] = []
    skipped: Counter[str] = Counter()
    for file in files:
        suffix = file.suffix.lower()
        if suffix in suffixes:
            selected.append(file)
        elif suffix not in _NO_MEDIA and not file.name.startswith(".") and file.is_file():
            skipped[suffix] += 1
    if skipped:
        kinds = ", ".join(f"{number} {printable(suffix)}" for suffix, number in skipped.most_common())
        warn_once(f"{counted(skipped.total(), 'file')} of `{where}` skipped, unsupported suffix: {kinds}")
    return selected


def copy_suffix(path: Path) -> str:
    """Return the suffix of the annotated copy of an image or video."""
    return ".mp4" if is_video(path) else _COPY_SUFFIXES.get(path.suffix.lower(), path.suffix)


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
    """Return whether a file is a video, by its suffix; an animated GIF is one, too."""
    return path.suffix.lower() in VIDEO_SUFFIXES or is_animated_gif(path)


def _suffix_hint() -> str:
    return "supported: " + " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
