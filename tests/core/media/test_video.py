"""Reading of video files: every frame that a video holds is read, and what is missing is said.

The number of frames is known by construction; the colours are those of ITU-R BT.601 and BT.709.
"""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from video_files import SIZE, destroy, numbered_image, numbers, packets, steady, write_video
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.media.video import Loss, open_video
from yolotrt_core.media.video_integrity import matroska_blocks
from yolotrt_core.media.video_writer import VideoWriter


def _read(path: Path) -> tuple[list[NDArray[np.uint8]], list[float], Loss | None]:
    with open_video(path) as video:
        frames = list(video)
        return [f.pixels for f in frames], [f.seconds for f in frames], video.loss(ended=True)


def test_a_pause_with_sound_all_along_ends_nothing(tmp_path: Path) -> None:
    times = [*steady(30), *(150 + t for t in steady(30))]  # between them 7500 packets of sound
    frames, seconds, loss = _read(write_video(tmp_path / "pause.mkv", times, sound=152))
    assert numbers(frames) == list(range(60))
    assert seconds == pytest.approx(times, abs=0.001)
    assert loss is None


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.mov", "v.ts"])
def test_each_frame_has_its_time(name: str, tmp_path: Path) -> None:
    times = steady(40)
    if name not in ("v.avi",):  # which has no times
        times[20:] = [0.8 + t for t in steady(20, 5)]
    codec = "mpeg4" if name == "v.ts" else "mjpeg"
    frames, seconds, loss = _read(write_video(tmp_path / name, times, codec=codec))
    assert numbers(frames) == list(range(40))
    assert seconds == pytest.approx(times, abs=0.001)
    assert loss is None


def test_sound_that_lasts_longer_is_no_loss(tmp_path: Path) -> None:
    for name in ("v.mp4", "v.mkv"):
        frames, _, loss = _read(write_video(tmp_path / name, steady(25), sound=4))
        assert len(frames) == 25
        assert loss is None


def test_the_first_of_two_video_streams_is_read(tmp_path: Path) -> None:
    frames, _, loss = _read(write_video(tmp_path / "two.mkv", steady(30), sizes=[(32, 16), (128, 96)]))
    assert {frame.shape for frame in frames} == {(16, 32, 3)}
    assert numbers(frames) == list(range(30))
    assert loss is None


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
@pytest.mark.parametrize("at", [[10, 20], [0], [58, 59], [57], [59]])
def test_frames_that_cannot_be_decoded_are_skipped_and_counted(codec: str, at: list[int], tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", steady(60), codec=codec, gop=1)  # decoded on several threads
    destroy(path, *at)
    frames, seconds, loss = _read(path)
    kept = [number for number in range(60) if number not in at]
    assert numbers(frames) == kept
    assert seconds == pytest.approx([(number - kept[0]) / 25 for number in kept], abs=0.001)
    assert loss is not None
    assert (loss.frames, loss.incomplete) == (len(at), False)
    words = f"{len(at)} frame{'s' * (len(at) > 1)} of the video `{path}` cannot be decoded"
    assert loss.message == f"{words}; the results include {60 - len(at)} frames"


def test_an_unreadable_end_is_no_small_loss(tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", steady(600))
    destroy(path, *range(570, 600))
    frames, _, loss = _read(path)
    assert len(frames) == 570
    assert loss is not None
    assert (loss.frames, loss.incomplete) == (30, True)


@pytest.mark.parametrize(("name", "about"), [("v.mp4", 24), ("v.mkv", 24), ("v.avi", 24), ("v.ts", None)])
def test_a_truncated_video(name: str, about: int | None, tmp_path: Path) -> None:
    codec = "mpeg4" if name == "v.ts" else "mjpeg"
    path = write_video(tmp_path / name, steady(60), codec=codec, options={"movflags": "faststart"}, gop=1)
    position, _ = packets(path)[36]
    path.write_bytes(path.read_bytes()[: position + 20])
    frames, _, loss = _read(path)
    assert len(frames) in (35, 36)  # of the last one of .ts an end may be missing
    assert numbers(frames) == list(range(len(frames)))
    assert loss is not None
    assert loss.incomplete
    assert loss.frames == about
    assert f"the video `{path}` is truncated" in loss.message
    assert f"the results include {len(frames)} frames" in loss.message


def test_an_invalid_part_of_a_matroska_file_is_a_loss(tmp_path: Path) -> None:
    """FFmpeg searches the next cluster without an error; by the container's duration some frames are missing."""
    path = write_video(tmp_path / "v.mkv", steady(60), sound=2)
    assert matroska_blocks(path) == (160, None)
    destroy(path, 7)
    frames, _, loss = _read(path)
    assert len(frames) < 60
    assert loss is not None
    assert (loss.frames, loss.incomplete) == (60 - len(frames), True)
    assert f"the video `{path}` has " in loss.message
    assert " of 160 packets that cannot be read; " in loss.message
    data = path.read_bytes()
    position = data.rindex(bytes.fromhex("1f43b675"))  # a cluster
    path.write_bytes(data[:position] + bytes(4) + data[position + 4 :])
    _, _, loss = _read(path)
    assert loss is not None
    assert f"the video `{path}` is invalid at byte {position}; " in loss.message


def test_invalid_packets_of_a_transport_stream_are_a_loss(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", steady(200), codec="mpeg4", gop=1)
    data = path.read_bytes()
    path.write_bytes(data[: -188 * 12] + bytes(188 * 12))
    frames, _, loss = _read(path)
    assert len(frames) < 200
    assert loss is not None
    assert (loss.frames, loss.incomplete) == (None, False)
    words = f"12 of {len(data) // 188} packets of the video `{path}` are invalid"
    assert loss.message == f"{words}; the results include {len(frames)} frames"


def test_missing_packets_of_a_transport_stream_are_said(tmp_path: Path) -> None:
    """As of a recording of a network stream that lost some."""
    path = write_video(tmp_path / "v.ts", steady(60), codec="mpeg4", gop=1)
    data = path.read_bytes()
    half = len(data) // 2 // 188 * 188
    path.write_bytes(data[:half] + data[half + 188 * 5 :])
    frames, _, loss = _read(path)
    assert 50 < len(frames) < 60
    assert loss is not None
    assert loss.message == (
        f"the video `{path}` has 1 gap, where frames may be missing; the results include {len(frames)} frames"
    )
    assert not loss.incomplete


def test_a_long_gap_in_a_transport_stream_does_not_end_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", steady(60), codec="mpeg4", gop=1)
    data = path.read_bytes()
    half = len(data) // 2 // 188 * 188
    path.write_bytes(data[:half] + bytes(188 * 1000) + data[half:])  # more than the 64 kB that FFmpeg searches at once
    frames, _, loss = _read(path)
    assert len(frames) in (59, 60)
    assert loss is not None
    assert "1000 of " in loss.message


def test_frames_that_hevc_repairs_are_kept(tmp_path: Path) -> None:
    """FFmpeg 8 leaves out all frames from a damaged one to the next key frame unless asked; FFmpeg 5 keeps them."""
    path = _write_hevc(tmp_path / "v.hevc", 40)
    data = path.read_bytes()
    units = [at for at in range(len(data)) if data[at : at + 3] == b"\0\0\1"]
    frames = [at for at in units if data[at + 3] >> 1 < 32]
    assert len(frames) == 40
    path.write_bytes(data[: frames[10]] + data[frames[11] :])
    read, _, loss = _read(path)
    assert len(read) == 39
    assert loss is not None
    assert (loss.frames, loss.incomplete) == (0, False)
    assert "may show errors" in loss.message
    path.write_bytes(data[: frames[0]] + data[frames[1] :])  # without a key frame nothing can be shown
    with pytest.raises(UsageError, match="has no readable frame"):
        _read(path)


def _write_hevc(path: Path, frames: int) -> Path:
    try:
        av.codec.Codec("libx265", "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this PyAV has no HEVC encoder")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:bframes=0:keyint=1000"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, number, 1), format="bgr24")))
        file.mux(stream.encode(None))
    return path


def test_an_invalid_part_of_a_fragmented_mp4_is_a_loss(tmp_path: Path) -> None:
    options = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
    path = write_video(tmp_path / "v.mp4", steady(60), options=options)
    data = path.read_bytes()
    assert _read(path)[2] is None
    position = data.index(b"moof", len(data) // 2) - 4
    path.write_bytes(data[:position] + bytes(64) + data[position + 64 :])
    frames, _, loss = _read(path)
    assert 20 < len(frames) < 40
    assert loss is not None
    assert loss.incomplete
    words = f"the video `{path}` is invalid at byte {position}; the results include {len(frames)} frames"
    assert loss.message == words
    path.write_bytes(data[: position + 20])
    _, _, loss = _read(path)
    assert loss is not None
    assert "is truncated" in loss.message
    assert loss.message.endswith(" frames")  # how many are missing is unknown


def test_joined_matroska_files_are_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", steady(30), codec="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data + data)
    frames, _, loss = _read(path)
    assert numbers(frames) == [*range(30), *range(30)]
    assert loss is None
    path.write_bytes(data + data[: len(data) * 2 // 3])
    _, _, loss = _read(path)
    assert loss is not None
    assert f"is truncated ({len(data) - len(data) * 2 // 3} bytes missing)" in loss.message


def test_an_avi_file_from_a_pipe_is_whole(tmp_path: Path) -> None:
    """FFmpeg writes the largest size and 2^30 frames into its header, which it cannot correct at the end."""
    path = write_video(tmp_path / "v.avi", steady(30))
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    at = data.index(b"strh") + 40
    assert int.from_bytes(data[at : at + 4], "little") == 30
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data[: data.rindex(b"idx1")])
    frames, _, loss = _read(path)
    assert numbers(frames) == list(range(30))
    assert loss is None
    with open_video(path) as video:
        assert video.frames == 0


def test_frames_before_an_edit_list_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(60), codec="mpeg4", gop=60)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    version, count, duration, begin = struct.unpack(">IIIi", data[at : at + 16])
    assert (version, count, begin) == (0, 1, 0)
    with av.open(str(path)) as file:
        time_base = file.streams.video[0].time_base
    assert time_base is not None
    data[at + 8 : at + 16] = struct.pack(">Ii", duration, int(Fraction(13, 25) / time_base))
    path.write_bytes(data)
    frames, seconds, loss = _read(path)
    assert numbers(frames) == list(range(13, 60))
    assert seconds == pytest.approx(steady(47), abs=0.001)
    assert loss is None


def test_joined_recordings_have_times_that_go_on(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.ts", steady(50), codec="mpeg4")
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() * 2)
    frames, seconds, loss = _read(both)
    assert len(frames) == 100
    assert seconds == pytest.approx(steady(100), abs=0.001)
    assert loss is None


@pytest.mark.parametrize(("matrix", "turn"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_rotated_video_is_upright(matrix: tuple[int, ...], turn: int, tmp_path: Path) -> None:
    """Matrix by ISO 14496-12, 8.3.2: (x, y) is shown at (a x + c y, b x + d y)."""
    path = tmp_path / "v.mp4"
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32], upright[24:, :32] = 200, 90
    with VideoWriter(path, 25) as writer:
        writer.write(upright, 0)
    (plain,), _, _ = _read(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    (turned,), _, _ = _read(path)
    np.testing.assert_array_equal(turned, np.rot90(plain, turn))
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("wide", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("space", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (2, 0.299, 0.114)])
def test_the_colours_are_those_of_the_stream(space: int, red: float, blue: float, wide: bool, tmp_path: Path) -> None:
    path, (y, u, v) = tmp_path / "v.mkv", (120, 90, 170)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=25)  # lossless
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 2 if wide else 1
        planes = np.stack([np.full(SIZE[::-1], value, np.uint8) for value in (y, u, v)])
        frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
        frame.colorspace, frame.color_range = space, 2 if wide else 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    light, colour = (y / 255, 255) if wide else ((y - 16) / 219, 224)
    b = light + 2 * (1 - blue) * (u - 128) / colour
    r = light + 2 * (1 - red) * (v - 128) / colour
    g = (light - red * r - blue * b) / (1 - red - blue)
    (pixels,), _, _ = _read(path)
    np.testing.assert_allclose(pixels[10, 10], [255 * b, 255 * g, 255 * r], atol=2)


def test_a_video_without_images(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [], sizes=[], sound=1)
    with pytest.raises(UsageError, match="it has no video stream"), open_video(path):
        pass


def test_without_pyav_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match="need PyAV, which is not installed") as caught, open_video(tmp_path / "v.mp4"):
        pass
    assert caught.value.hint == "pip install 'yolotrt-core[video]'"


def test_no_frame_that_can_be_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(3))
    destroy(path, 0, 1, 2)
    with pytest.raises(UsageError, match="has no readable frame"):
        _read(path)


def test_ffmpeg_writes_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_video(tmp_path / "v.mp4", steady(20))
    destroy(path, 5)
    _read(path)
    path.write_bytes(b"junk")
    with pytest.raises(UsageError, match="cannot decode the video"):
        _read(path)
    assert capfd.readouterr() == ("", "")


def test_a_written_video_keeps_times_and_the_first_size(tmp_path: Path) -> None:
    path, times = tmp_path / "v.mp4", [0, 0.04, 0.08, 0.08, 30.5, 31.0]
    with VideoWriter(path, 29.97) as writer:
        for number, time in enumerate(times):
            writer.write(np.full((27 + number, 35, 3), 40 * number, np.uint8), time)
    frames, seconds, loss = _read(path)
    assert {frame.shape for frame in frames} == {(27, 35, 3)}
    assert [round(float(frame.mean()), -1) for frame in frames] == [40 * number for number in range(6)]
    assert seconds == pytest.approx(times, abs=0.001)
    assert loss is None
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_an_endless_video_can_be_read_before_its_end(tmp_path: Path) -> None:
    """It has no table of all frames, which would grow in memory until the end."""
    path, noise = tmp_path / "v.mp4", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with VideoWriter(path, 25, endless=True) as writer:
        for number in range(100):
            writer.write(np.roll(noise, number, 1), number / 25)
        unfinished = tmp_path / "unfinished.mp4"
        unfinished.write_bytes(path.read_bytes())
    with open_video(unfinished) as video:
        assert 50 < len(list(video)) < 100
    frames, seconds, loss = _read(path)
    assert len(frames) == 100
    assert seconds == pytest.approx(steady(100), abs=0.001)
    assert loss is None


def test_an_endless_video_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with pytest.raises(ArtifactError, match="it is incomplete"), VideoWriter(path, 25, endless=True) as writer:
        for number in range(100):
            writer.write(numbered_image(number), number / 25)
        with path.open("r+b") as file:  # as writes that failed without a word
            file.truncate(file.seek(0, 2) // 2 + 1)
            file.seek(0, 2)
            file.write(bytes(100))
