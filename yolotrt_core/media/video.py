"""Frames of video files, and what is missing of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.console.text import counted
from yolotrt_core.errors import UsageError
from yolotrt_core.media.video_decoder import Decoder, VideoFrame, import_av, open_decoder
from yolotrt_core.media.video_integrity import invalid_box, invalid_packets, matroska_blocks, missing_bytes

_STATES_DURATION = frozenset({"asf", "avi", "flv", "matroska"})  # else FFmpeg derives it from the last packets
_MAX_SKIPPED = 0.1  # share of frames; more is not a few damaged ones
_MAX_SHORT = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Loss:
    """What is missing of a video.

    Attributes:
        message: the error or warning. frames: number of frames missing, None if unknown. incomplete: an end or a large
            part is missing, rather than a few frames. hint: what to do.
    """

    message: str
    frames: int | None
    incomplete: bool
    hint: str | None = None


class Video:
    """An opened video file; iterate it once.

    Attributes:
        fps: nominal frames per second. frames: number of frames by the container, 0 if unknown.
    """

    def __init__(self, path: Path, decoder: Decoder) -> None:
        """Wrap a decoder; use `open_video`."""
        self._path, self._decoder = path, decoder
        self.fps, self.frames = decoder.fps, decoder.estimated

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the frames in presentation order.

        Raises:
            UsageError: there is none.
        """
        yield from self._decoder
        if self._decoder.read == 0:
            raise UsageError(f"the video `{self._path}` has no readable frame")

    def loss(self, *, ended: bool) -> Loss | None:
        """Return what is missing, by the decoder and by what the container states, or None.

        Args:
            ended: the iteration ended by itself; else only skipped frames count.
        """
        decoder = self._decoder
        listed = decoder.listed if ended else 0
        missing = max(decoder.skipped, listed - decoder.read)
        included = f"the results include {counted(decoder.read, 'frame')}"
        if ended and (early := self._early_end()):
            total = listed or (decoder.estimated if decoder.format & _STATES_DURATION else 0)
            missing = max(missing, total - decoder.read) if total else 0  # unknown
            included += f", about {missing} are missing" if missing else ""
            return Loss(
                f"the video `{self._path}` {early}; {included}",
                missing or None,
                incomplete=True,
                hint="copy or record it again",
            )
        if ended and "mpegts" in decoder.format and (invalid := invalid_packets(self._path))[0]:
            words = f"{invalid[0]} of {invalid[1]} packets of the video `{self._path}` are invalid"
            return Loss(f"{words}; {included}", missing or None, incomplete=invalid[0] > _MAX_SKIPPED * invalid[1])
        if missing:
            words = f"{counted(missing, 'frame')} of the video `{self._path}` cannot be decoded"
            many = missing > _MAX_SKIPPED * (decoder.read + missing) or decoder.trailing > decoder.fps
            return Loss(f"{words}; {included}", missing, incomplete=many)
        if ended and decoder.gaps:
            words = f"the video `{self._path}` has {counted(decoder.gaps, 'gap')}, where frames may be missing"
            return Loss(f"{words}; {included}", None, incomplete=False)
        if decoder.corrupted:
            words = f"{counted(decoder.corrupted, 'frame')} of the video `{self._path}` may show errors"
            return Loss(f"{words}; {included}", 0, incomplete=False)
        return None

    def _early_end(self) -> str:
        """Return how the file ends early or lacks a part, or an empty text."""
        if bytes_missing := missing_bytes(self._path):
            return f"is truncated ({bytes_missing} bytes missing)"
        decoder = self._decoder
        if decoder.error is not None:
            return f"cannot be read to its end ({type(decoder.error).__name__})"
        if decoder.format & {"asf", "flv", "matroska"} and decoder.seconds - decoder.end > _MAX_SHORT:
            return f"is truncated (it ends after {decoder.end:.1f} s of {decoder.seconds:.1f} s)"
        blocks, position = matroska_blocks(self._path)
        if position is None and "mp4" in decoder.format:
            position = invalid_box(self._path)
        if position is not None:
            return f"is invalid at byte {position}"
        if decoder.packets < blocks:
            return f"has {blocks - decoder.packets} of {blocks} packets that cannot be read"
        return ""


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video file.

    Raises:
        UsageError: it cannot be opened, or PyAV is missing.
    """
    errors = import_av().error
    with ExitStack() as stack:
        try:
            decoder = stack.enter_context(open_decoder(f"file:{path}", frame_threads=True))
        except errors.FFmpegError as err:
            raise UsageError(
                f"cannot decode the video `{path}`", hint="the file may be truncated or use an unsupported codec"
            ) from err
        except UsageError as err:
            raise UsageError(f"cannot decode the video `{path}`: {err}", hint=err.hint) from err
        yield Video(path, decoder)


def count_frames(path: Path) -> int:
    """Return the number of frames in a video file's metadata; 0 if it cannot be opened."""
    try:
        with open_decoder(f"file:{path}", frame_threads=False) as decoder:
            return decoder.estimated
    except import_av().error.FFmpegError:
        return 0
