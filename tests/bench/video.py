"""Reading and writing of a video beside OpenCV's reader and writer, in one interleaved run.

    python tests/bench/video.py VIDEO [--rounds 5] [--frames 300]

Prints milliseconds per frame, wall and CPU, the minimum of the rounds, and how far the pixels differ. As in `detect`,
eight frames are held at a time. A 1080p H.264 file is made by

    ffmpeg -f lavfi -i testsrc2=s=1920x1080:r=25:d=12 -vf noise=alls=8:allf=t,format=yuv420p -c:v libx264 v.mp4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from yolotrt_core.media.video import open_video
from yolotrt_core.media.video_writer import VideoWriter

HELD = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=300)
    options = parser.parse_args()
    frames = list(islice(_opencv(options.video), 30))
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Callable[[], int]] = {
            "read, yolotrt": lambda: _drained(_ours(options.video), options.frames),
            "read, OpenCV": lambda: _drained(_opencv(options.video), options.frames),
            "write, yolotrt": lambda: _write(frames, Path(folder) / "ours.mp4"),
            "write, OpenCV": lambda: _write_opencv(frames, Path(folder) / "opencv.mp4"),
        }
        wall, processor = ({name: list[float]() for name in cases} for _ in range(2))
        for _ in range(options.rounds):
            for name, work in cases.items():
                begun = time.perf_counter(), time.process_time()
                count = work()
                wall[name].append(1000 * (time.perf_counter() - begun[0]) / count)
                processor[name].append(1000 * (time.process_time() - begun[1]) / count)
    for name in cases:
        print(f"{name:16} {min(wall[name]):6.2f} ms wall {min(processor[name]):6.2f} ms CPU")
    pairs = zip(_ours(options.video), _opencv(options.video), strict=False)
    apart = [np.abs(a.astype(np.int16) - b) for a, b in islice(pairs, 50)]
    print(f"pixels: mean difference {np.mean([d.mean() for d in apart]):.4f}, largest {max(d.max() for d in apart)}")


def _ours(path: Path) -> Iterator[np.ndarray]:
    with open_video(path) as video:
        for frame in video:
            yield frame.pixels


def _opencv(path: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield read[1]
    capture.release()


def _drained(frames: Iterator[np.ndarray], limit: int) -> int:
    held: deque[np.ndarray] = deque(maxlen=HELD)
    count = 0
    for frame in islice(frames, limit):
        held.append(frame)
        count += 1
    return count


def _write(frames: list[np.ndarray], path: Path) -> int:
    with VideoWriter(path, 25) as writer:
        for number, frame in enumerate(frames):
            writer.write(frame, number / 25)
    return len(frames)


def _write_opencv(frames: list[np.ndarray], path: Path) -> int:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return len(frames)


if __name__ == "__main__":
    main()
