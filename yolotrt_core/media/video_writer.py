"""Annotated videos, written by PyAV as MPEG-4 with the time of each frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import ArtifactError
from yolotrt_core.media.video import count_frames
from yolotrt_core.media.video_decoder import import_av
from yolotrt_core.media.video_integrity import invalid_box, missing_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TICKS = 60000  # per second: MPEG-4 allows 65535; whole for 24, 25, 30, 29.97, 50, 59.94 and 120 frames per second
_QUANTIZER = 3  # 1 to 31; near the quality of OpenCV's writer
_QP_TO_LAMBDA = 118  # FFmpeg's FF_QP2LAMBDA
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof+skip_trailer", "flush_packets": "1"}
_INCOMPLETE = "cannot write the annotated video: it is incomplete; the disk may be full"


class VideoWriter:
    """Writes frames in the size of the first; a context manager."""

    def __init__(self, target: Path, fps: float, *, endless: bool = False) -> None:
        """Prepare writing; the file is created with the first frame.

        Args:
            target: path with a suffix by which FFmpeg chooses the container; `.mp4` if endless. fps: nominal frames per
                second. endless: write in fragments, so that memory does not grow with the number of frames, and what
                is written can be shown even if the process is killed.
        """
        self._target, self._fps, self._endless = target, fps, endless
        self._container: Any = None
        self._stream: Any = None
        self._frames, self._last = 0, -1

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame.

        Args:
            pixels: uint8 (H, W, 3) BGR. seconds: its time since the first.

        Raises:
            ArtifactError: the file cannot be written.
        """
        av = import_av()
        try:
            if self._container is None:
                self._open(pixels.shape[1], pixels.shape[0])
            frame = av.VideoFrame.from_numpy_buffer(pixels, format="bgr24")  # the encoder converts a copy
            self._last = max(round(seconds * _TICKS), self._last + 1)
            frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(frame))
        except av.error.FFmpegError as err:
            raise ArtifactError("cannot write the annotated video", hint="choose another folder with `--out`") from err
        self._frames += 1

    def _open(self, width: int, height: int) -> None:
        self._container = import_av().open(str(self._target), "w", options=_FRAGMENTS if self._endless else {})
        rate = Fraction(self._fps).limit_denominator(1001)
        options = {"flags": "+qscale", "global_quality": str(_QUANTIZER * _QP_TO_LAMBDA)}
        self._stream = self._container.add_stream("mpeg4", rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.thread_type = "AUTO"

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._container is None:
            return
        hint = "free some space, or choose another folder with `--out`"
        try:
            with self._container:
                if kind is None:
                    self._container.mux(self._stream.encode(None))
        except import_av().error.FFmpegError as err:
            if kind is None:
                raise ArtifactError(_INCOMPLETE, hint=hint) from err
        if kind is None and not self._complete():
            raise ArtifactError(_INCOMPLETE, hint=hint)

    def _complete(self) -> bool:
        """Return whether all was written; FFmpeg does not report every failed write."""
        if self._endless:
            return not missing_bytes(self._target) and invalid_box(self._target) is None
        return count_frames(self._target) == self._frames
