"""What containers say of their own length, by videos that OpenCV writes and by headers put together by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.media.video_integrity import missing_bytes


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.avi", "MJPG"),
        ("b.avi", "mp4v"),
        ("c.mkv", "mp4v"),
        ("d.mp4", "mp4v"),
        ("e.mov", "mp4v"),
        ("f.webm", "VP80"),
        ("g.wmv", "WMV2"),
        ("h.ts", "mp4v"),
    ],
)
def test_a_video_knows_what_was_cut_off(name: str, codec: str, tmp_path: Path) -> None:
    video = tmp_path / name
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*codec), 10, (128, 96))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {codec} into {video.suffix}")
    rng = np.random.default_rng(0)
    for _ in range(30):
        writer.write(rng.integers(0, 256, (96, 128, 3), np.uint8))
    writer.release()
    whole = video.read_bytes()
    assert missing_bytes(video) == 0
    for share in (0.05, 0.5, 0.9):
        kept = int(len(whole) * share)
        video.write_bytes(whole[:kept])
        missing = missing_bytes(video)
        if video.suffix == ".ts":  # packets of 188 bytes, and no word of how many
            assert missing == -kept % 188
        elif video.suffix in (".mp4", ".mov", ".wmv"):  # what came behind the images is gone with its own length
            assert 0 < missing <= len(whole) - kept
        else:
            assert missing == len(whole) - kept


_FTYP = (16).to_bytes(4, "big") + b"ftypisom" + bytes(4)
_EBML = bytes.fromhex("1a45dfa3 84 00000000 18538067")


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (_FTYP + (1).to_bytes(4, "big") + b"mdat" + (1 << 33).to_bytes(8, "big"), (1 << 33) - 16),
        (_FTYP + (0).to_bytes(4, "big") + b"mdat" + bytes(100), 0),
        (_FTYP + (108).to_bytes(4, "big") + b"mdat" + bytes(100) + bytes(50), 0),
        (_FTYP + (4).to_bytes(4, "big") + b"mdat", 0),
        (_EBML + b"\x01" + b"\xff" * 7 + bytes(20), 0),
        (_EBML + b"\xff" + bytes(20), 0),
        (_EBML + b"\x01" + (1000).to_bytes(7, "big") + bytes(900), 100),
        (_EBML + b"\x8a" + bytes(10), 0),
        (_EBML + b"\x8a" + bytes(9), 1),
        (_EBML + b"\x00" * 9, 0),
        (_EBML[:7], 2),
        (b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16), 0),
        (b"RIFF" + (12).to_bytes(4, "little") + b"AVI " + bytes(8) + b"RIFF" + (12).to_bytes(4, "little"), 12),
        (b"", 0),
        (b"RIFF", 0),
        (b"junk" * 100, 0),
    ],
)
def test_headers(content: bytes, missing: int, tmp_path: Path) -> None:
    video = tmp_path / "video"
    video.write_bytes(content)
    assert missing_bytes(video) == missing
