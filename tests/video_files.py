"""Videos made for tests by PyAV; each frame shows its number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SIZE = (64, 48)  # width, height


def numbered_image(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a frame whose eight bars are the bits of its number, uint8 (H, W, 3)."""
    width, height = size
    bars = np.array([200 if number >> bit & 1 else 40 for bit in range(8)], np.uint8)
    return np.broadcast_to(np.repeat(bars, width // 8)[None, :, None], (height, width, 3)).copy()


def numbers(frames: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Return the number of each frame."""
    means = [frame.reshape(len(frame), 8, -1).mean((0, 2)) for frame in frames]
    return [sum(1 << bit for bit in range(8) if bars[bit] > 120) for bars in means]


def write_video(
    path: Path,
    seconds: Sequence[float],
    *,
    codec: str = "mjpeg",
    sizes: Sequence[tuple[int, int]] = (SIZE,),
    sound: float = 0,
    options: dict[str, str] | None = None,
    gop: int = 12,
) -> Path:
    """Write a video and return its path.

    Args:
        seconds: time of each frame. sizes: width and height of each video stream. sound: seconds of silence from the
            beginning, in packets of 20 ms; an MP4 or MOV file then holds it as AAC. options: of the container.
    """
    ticks = 25 if path.suffix == ".avi" else 1000  # per second; AVI repeats frames in between
    with av.open(str(path), "w", options=options or {}) as file:
        streams = []
        for width, height in sizes:
            quality = {} if codec == "mjpeg" else {"flags": "+qscale", "global_quality": "118"}  # the best
            stream = file.add_stream(codec, rate=25, options=quality)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = Fraction(1, ticks)
            stream.codec_context.gop_size = gop
            streams.append(stream)
        audio = file.add_stream("pcm_s16le" if path.suffix in (".mkv", ".avi") else "aac", rate=8000) if sound else None
        played = 0.0
        for number, time in enumerate(seconds):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(
                    numbered_image(number, (stream.width, stream.height)), format="bgr24"
                )
                frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
                file.mux(stream.encode(frame))
            while audio is not None and played < min(sound, time):
                played = _play(file, audio, played)
        while audio is not None and played < sound:
            played = _play(file, audio, played)
        for stream in [*streams, *([audio] if audio else [])]:
            file.mux(stream.encode(None))
    return path


def _play(file: av.container.OutputContainer, audio: av.AudioStream, played: float) -> float:
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 160), np.int16), format="s16", layout="mono")
    silence.sample_rate, silence.pts, silence.time_base = 8000, round(played * 8000), Fraction(1, 8000)
    file.mux(audio.encode(silence))
    return played + 0.02


def steady(frames: int, fps: float = 25) -> list[float]:
    """Return the times of a constant rate."""
    return [number / fps for number in range(frames)]


def packets(path: Path) -> list[tuple[int, int]]:
    """Return the position and size in bytes of each packet of the first video stream."""
    with av.open(str(path)) as file:
        return [(packet.pos, packet.size) for packet in file.demux(file.streams.video[0]) if packet.size]


def destroy(path: Path, *indices: int) -> None:
    """Overwrite packets by zeros, which no decoder accepts."""
    data = bytearray(path.read_bytes())
    for position, size in (packets(path)[index] for index in indices):
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
