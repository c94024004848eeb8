"""Inputs of the command line: images, videos, cameras and streams."""

from __future__ import annotations

import glob
import logging
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from yolotrt_core.console.notices import warn_once
from yolotrt_core.console.text import counted, printable
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, read_text, user_path

_log = logging.getLogger(__name__)

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
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m2v", ".m4v", ".mjpeg",
    ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm",
    ".wmv",
})  # fmt: skip
RECONNECT_SECONDS = 60  # without a frame, after which a live source counts as lost
LIST_SUFFIX = ".txt"  # of a file that lists images
_NAMED = 3  # missing files in an error
_LABEL = re.compile(r"\d+(\s+[-+.\deE]+){4,}")  # a line of a YOLO label file
CAMERA = re.compile("camera:([0-9]{1,3})")
_CREDENTIALS = re.compile(r"(?<=://).*@")  # greedy: a password may contain `@`
# Some cameras have credentials in the path: rtsp://HOST/user=admin&password=...
_CREDENTIALS_IN_PATH = re.compile(r"(?i)(user|username|pass|passwd|password|pwd|token|key)=[^&/;?]*")
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://")


def find_inputs(path: str) -> list[Path]:
    """List the images and videos of a path, in a fixed order.

    Args:
        path: a file, a folder (not its subfolders), a pattern with `*`, `?` or `**`, or a text file that lists
            files and folders, see `read_list`.

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
        if named.suffix.lower() == LIST_SUFFIX:
            return list(dict.fromkeys(file for place in read_list(named) for file in _listed(place, named)))
        if named.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UsageError(f"unsupported file suffix `{named.suffix}` of `{path}`", hint=_suffix_hint())
        return [named]
    if glob.has_magic(path):
        found = _matches(user_path(path), path)
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


def _matches(pattern: Path, given: str) -> list[Path]:
    matches = sorted(Path(p) for p in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - Path.glob has no absolute patterns
    return select_files(matches, IMAGE_SUFFIXES | VIDEO_SUFFIXES, given)


def read_list(file: Path) -> list[Path]:
    """Read a text file with the path of one file, folder or pattern per line, in its order, each file once.

    A relative path is relative to the folder of the list, or else to the working folder, as in YOLOv5. Blank lines and
    lines that begin with `#` are skipped.

    Raises:
        UsageError: an unreadable list, one without paths, or with paths that do not exist.
    """
    found: dict[str, Path] = {}
    repeated: list[Path] = []
    missing: list[str] = []
    lines = list(list_lines(file))
    for line in lines:
        places = next(filter(None, map(_at, _places(line, file))), None)
        if places is None:
            missing.append(line)
        for place in places or ():
            # Not by `resolve`: two links to one image are two images.
            if found.setdefault(os.path.abspath(place), place) is not place:  # noqa: PTH100
                repeated.append(place)
    if missing:
        raise _missing(missing, len(lines), file)
    if not found:
        raise UsageError(f"the list `{file}` has no path", hint="one image, video or folder per line")
    if repeated:
        _log.warning(
            "`%s` lists %s again, such as `%s`; each is read once", file, counted(len(repeated), "file"), repeated[0]
        )
    return list(found.values())


def list_lines(file: Path) -> Iterator[str]:
    """Yield the paths in a text file as written, without blank lines and those that begin with `#`.

    Raises:
        UsageError: it cannot be read.
    """
    for line in read_text(file, "the image list").splitlines():
        if (text := line.strip()) and not text.startswith("#"):
            yield text


def _at(place: Path) -> list[Path]:
    if existing_path(place) is not None:
        return [place]
    return _matches(place, str(place)) if glob.has_magic(str(place)) else []


def _places(line: str, file: Path) -> Iterable[Path]:
    path = user_path(line)
    return (path,) if path.is_absolute() else dict.fromkeys((file.parent / path, path))


def _missing(lines: list[str], total: int, file: Path) -> UsageError:
    first = lines[0]
    if _LABEL.fullmatch(first):
        return UsageError(f"`{file}` lists labels, not images: `{first}`", hint="pass the images or their folder")
    if is_live(first):
        return UsageError(
            f"`{file}` lists the live source `{redact(first)}`", hint="pass it as the PATH, one at a time"
        )
    named = ", ".join(f"`{redact(line)}`" for line in lines[:_NAMED]) + (", ..." if lines[_NAMED:] else "")
    return UsageError(
        f"{len(lines)} of {counted(total, 'path')} in `{file}` do not exist: {named}",
        hint="tried " + " and ".join(f"`{place.absolute()}`" for place in _places(first, file)),
    )


def _listed(place: Path, file: Path) -> list[Path]:
    if place.suffix.lower() == LIST_SUFFIX and not place.is_dir():
        raise UsageError(f"`{place}`, listed in `{file}`, is not an image or video", hint=_suffix_hint())
    try:
        return find_inputs(str(place))
    except UsageError as err:
        raise UsageError(f"{err.message}, listed in `{file}`", hint=err.hint) from None


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
    suffix = path.suffix.lower()
    if suffix != ".gif":
        return suffix in VIDEO_SUFFIXES
    from yolotrt_core.media.animation import is_animated_gif

    return is_animated_gif(path)


def _suffix_hint() -> str:
    return "supported: " + " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
