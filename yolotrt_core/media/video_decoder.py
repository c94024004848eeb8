"""Frames of an opened video file or stream, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Failed reads in a row, after which a container counts as unreadable: of an MJPEG stream each passes over one line.
_MAX_READ_ERRORS = 1000
_NOMINAL_FPS = 25.0  # of videos without one, as OpenCV
_UNKNOWN_FRAMES = 1 << 30  # in the header of an AVI file that FFmpeg wrote to a pipe
_GAP_AHEAD = 2  # packets before the end of a part of a joined recording of which FFmpeg says that data is missing
_MAX_STEP_BACK = 1.0  # seconds; by more, joined recordings or a clock that starts again


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame of a video.

    Attributes:
        pixels: uint8 (H, W, 3) BGR, upright. seconds: since the first frame; for live sources, of arrival.
    """

    pixels: NDArray[np.uint8]
    seconds: float


@contextmanager
def open_decoder(address: str, *, frame_threads: bool, timeout: float | None = None) -> Iterator[Decoder]:
    """Open a video and find its first video stream that is not a cover image.

    Args:
        address: FFmpeg's address, `file:PATH` for a file. frame_threads: decode several frames at once, which delays
            each by their number. timeout: of a stream, seconds to wait for data.

    Raises:
        UsageError: PyAV is missing, or no stream can be decoded.
        OSError, ValueError: FFmpeg's errors.
    """
    av = import_av()
    options = {} if timeout is None else _stream_options(address, timeout)
    with av.open(address, metadata_errors="replace", options=options) as container:
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            raise UsageError("it has no video stream", hint="pass a file or stream with images, not only sound")
        if streams[0].codec_context is None:
            raise UsageError("its codec is not supported", hint="convert it to H.264")
        yield Decoder(address, container, streams[0], frame_threads=frame_threads, live=timeout is not None)


def _stream_options(address: str, timeout: float) -> dict[str, str]:
    """Return FFmpeg's options for a stream.

    PyAV's own timeout calls Python from a blocked read, which crashes if the interpreter is shutting down.
    """
    scheme, microseconds = address.partition(":")[0].lower(), str(round(timeout * 1e6))
    if scheme in ("rtsp", "rtsps"):  # TCP as in OpenCV: a packet that UDP loses spoils frames
        return {"timeout": microseconds, "rtsp_flags": "prefer_tcp"}
    return {"timeout" if scheme == "udp" else "rw_timeout": microseconds}


def import_av() -> Any:
    """Return PyAV.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import av
    except ImportError as err:
        raise UsageError(
            "videos and streams need PyAV, which is not installed", hint="pip install 'yolotrt-core[video]'"
        ) from err
    return av


class Decoder:
    """Iterates over the frames in presentation order; what cannot be decoded is skipped and counted.

    Frames that FFmpeg decodes with concealed errors are kept, as OpenCV does.

    Attributes:
        packets: number of packets read, of all streams of a file. gaps: places where FFmpeg found packets of a
            transport stream missing. read, skipped, corrupted: number of frames decoded,
            not decodable, and decoded with errors so far. trailing: frames skipped since the last decoded one. fps:
            nominal frames per second. end: end of the last packet, of any stream of a file, in seconds. error: of the
            read that ended the iteration early, or None.
    """

    def __init__(self, address: str, container: Any, stream: Any, *, frame_threads: bool, live: bool) -> None:
        """Prepare decoding of `stream`; use `open_decoder`."""
        self.read = self.skipped = self.corrupted = self.trailing = 0
        self.error: Exception | None = None
        self.end = 0.0
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else _NOMINAL_FPS
        self._address, self._container, self._stream, self._live = address, container, stream, live
        self._frame_threads = frame_threads
        stream.thread_type = "AUTO" if frame_threads else "SLICE"
        # Else FFmpeg 8 silently leaves out all frames between a damaged one and the next key frame; no other decoder
        # of it does. Those before the first key frame are skipped here.
        self._begins_whole = stream.codec_context.name == "hevc"
        if self._begins_whole:
            stream.codec_context.flags |= import_av().codec.context.Flags.output_corrupt
        self.packets = self.gaps = 0
        self._packets = self._left_out = 0  # of the stream; the latter by an edit list
        self._gap = -_GAP_AHEAD  # number of the last packet with one
        self._decoding = 0.0  # timestamp of the last packet, in seconds
        self._end_lost = False

    @property
    def format(self) -> frozenset[str]:
        """FFmpeg's short names of the container's format."""
        return frozenset(self._container.format.name.split(","))

    @property
    def listed(self) -> int:
        """Number of frames in the index of an MP4 or MOV file, less those excluded by its edit list; else 0.

        A fragmented file has no index of all its frames.
        """
        indexed = "mp4" in self.format and self._stream.frames
        return len(self._stream.index_entries) - self._left_out if indexed else 0

    @property
    def seconds(self) -> float:
        """Duration that the container states or FFmpeg estimates; 0 if unknown."""
        return (self._container.duration or 0) / 1e6

    @property
    def estimated(self) -> int:
        """Number of frames by the container or its duration; 0 if unknown."""
        frames = int(self._stream.frames)
        return 0 if frames == _UNKNOWN_FRAMES else frames or round(self.seconds * self.fps)

    @property
    def finite(self) -> bool:
        """Whether the source states its size or duration, unlike a camera."""
        return bool(self._container.duration) or self._container.size > 0

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield each frame."""
        clock, convert = _Clock(1 / self.fps), _converter()
        for frame, stamp in self._with_tail():
            unusable = frame is None or (self._begins_whole and not self.read and frame.is_corrupt)
            pixels = None if unusable else convert(frame)
            if pixels is None:
                self.skipped += 1
                self.trailing += 1
                continue
            self.read += 1
            self.trailing = 0
            self.corrupted += bool(frame.is_corrupt)
            yield VideoFrame(pixels, clock.seconds(stamp))

    def _with_tail(self) -> Iterator[tuple[Any, float | None]]:
        """Yield PyAV's frames, None for each that cannot be decoded, and their timestamps in seconds."""
        frames = failures = 0
        passed: float | None = None
        for frame, stamp in self._decoded():
            frames += frame is not None
            failures += frame is None
            passed = passed if frame is None else stamp
            yield frame, stamp
        lost = self._packets - self._left_out > frames + failures
        if self._frame_threads and (lost or self._end_lost):
            yield from self._tail(frames, passed)

    def _tail(self, frames: int, passed: float | None) -> Iterator[tuple[Any, float | None]]:
        """Yield what follows an error close to the end: PyAV loses it when frames are decoded on threads.

        Args:
            frames: number of frames yielded. passed: timestamp of the last one.
        """
        number = 0
        with open_decoder(self._address, frame_threads=False) as again:
            if passed is not None:
                again.seek(passed)
            for frame, stamp in again._decoded():
                number += frame is not None
                if (number > frames) if passed is None or stamp is None else (stamp > passed):
                    yield frame, stamp

    def seek(self, seconds: float) -> None:
        """Continue at the key frame at or before a timestamp, or where decoding is if the format cannot."""
        with suppress(import_av().error.FFmpegError):
            self._container.seek(int(seconds / self._stream.time_base), stream=self._stream)

    def _decoded(self) -> Iterator[tuple[Any, float | None]]:
        errors = (import_av().error.FFmpegError, EOFError)
        for packet in self._demuxed():
            self._packets += 1
            self._left_out += bool(packet.is_discard)
            self._note_gap(packet)
            try:
                frames = packet.decode()
            except errors:
                yield None, self._stamp(packet)
                continue
            for frame in frames:
                yield frame, self._stamp(frame)
        try:
            frames = self._stream.decode(None)
        except errors:
            self._end_lost = True
            frames = []
        for frame in frames:
            yield frame, self._stamp(frame)

    def _stamp(self, timed: Any) -> float | None:
        return None if timed.pts is None else float(timed.pts * self._stream.time_base)

    def _demuxed(self) -> Iterator[Any]:
        """Yield the packets of the stream; invalid data between them is skipped and counted once."""
        errors = import_av().error
        chosen = [self._stream] if self._live else []  # a file ends where its longest stream does
        failures = 0
        while failures < _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux(*chosen):
                    self.packets += packet.pts is not None or packet.dts is not None  # not those that mark the end
                    if not packet.size:  # at the end, and where an AVI file repeats a frame
                        continue
                    failures = 0
                    self._note_end(packet)
                    if packet.stream_index == self._stream.index:
                        yield packet
                self.error = None
                return
            except (errors.InvalidDataError, errors.BlockingIOError) as err:  # the latter: no packet start for 64 kB
                failures += 1
                self.skipped += failures == 1
                self.error = err
            except (errors.FFmpegError, OSError) as err:
                self.error = err
                return

    def _note_gap(self, packet: Any) -> None:
        """Count where data is missing; not where recordings were joined, the timestamps of which start again."""
        if packet.dts is not None:
            seconds = float(packet.dts * packet.time_base)
            if seconds < self._decoding - _MAX_STEP_BACK and self._packets - self._gap <= _GAP_AHEAD:
                self.gaps -= 1
            self._decoding = seconds
        if packet.is_corrupt:
            self.gaps += 1
            self._gap = self._packets

    def _note_end(self, packet: Any) -> None:
        if packet.pts is not None:
            self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))


def _converter() -> Callable[[Any], NDArray[np.uint8] | None]:
    """Return a function that converts PyAV's frames to upright BGR; None for pixels that FFmpeg cannot convert.

    The stream's colour matrix and range are used; BT.601 without one, like OpenCV, whose pixels it then equals.
    """
    import numpy as np
    from av.video.reformatter import Interpolation, VideoReformatter

    error = import_av().error.FFmpegError
    scaler = VideoReformatter()

    def convert(frame: Any) -> NDArray[np.uint8] | None:
        try:
            bgr = scaler.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC)
        except (error, ValueError):
            return None
        quarters, rest = divmod(round(frame.rotation), 90)
        return np.ascontiguousarray(np.rot90(bgr.to_ndarray(), 0 if rest else quarters))

    return convert


class _Clock:
    """Seconds since the first frame, by timestamps that may be missing or start again."""

    def __init__(self, step: float) -> None:
        self._step, self._shift = step, 0.0
        self._last: float | None = None

    def seconds(self, stamp: float | None) -> float:
        """Return the time of the next frame."""
        if self._last is None:
            self._shift, self._last = -(stamp or 0.0), 0.0
            return 0.0
        expected = self._last + self._step
        now = expected if stamp is None else stamp + self._shift
        if now < self._last - _MAX_STEP_BACK:
            self._shift += expected - now
            now = expected
        self._last = max(now, self._last)
        return self._last
