"""Formats that folders of images contain: read, or named and counted in a warning."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.console import notices
from yolotrt_core.datasets import reader
from yolotrt_core.media import images, inputs
from yolotrt_core.media.animation import has_pages, is_animated

_RED, _BLUE = (0, 0, 255), (255, 0, 0)  # BGR


@pytest.fixture(autouse=True)
def _no_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_given", set())


def gif(frames: list[np.ndarray]) -> bytes:
    """Encode frames of palette indices 0 to 3, uint8 (H, W), after the specification of GIF89a.

    LZW with a clear code before every two pixels keeps each code at three bits.
    """
    height, width = frames[0].shape
    palette = bytes([0, 0, 0, 255, 0, 0, 0, 0, 255, 255, 255, 255])  # black, red, blue, white
    data = b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\x81\0\0" + palette
    for frame in frames:
        pixels = frame.ravel().tolist()
        codes = [code for at in range(0, len(pixels), 2) for code in (4, *pixels[at : at + 2])] + [5]
        bits = sum(code << 3 * place for place, code in enumerate(codes))
        packed = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        blocks = [packed[at : at + 255] for at in range(0, len(packed), 255)]
        data += (
            b"\x21\xf9\x04\0\x0a\0\0\0,\0\0\0\0" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\0"
        )
        data += b"\x02" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    return data + b";"


_FIRST = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4
_COLOURS = np.array([(0, 0, 0), _RED, _BLUE, (255, 255, 255)], np.uint8)


def _jpeg(colour: tuple[int, int, int]) -> bytes:
    good, data = cv2.imencode(".jpg", np.full((24, 40, 3), colour, np.uint8))
    assert good
    return data.tobytes()


def _only_if_built_in(suffix: str) -> None:
    if not cv2.haveImageWriter(f"x{suffix}"):
        pytest.skip(f"OpenCV {cv2.__version__} is built without {suffix}")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".mpo", ".JFIF"])
def test_jpeg_by_other_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(_jpeg(_RED) + (_jpeg(_BLUE) if suffix == ".mpo" else b""))  # MPO: the other eye follows
    expected = cv2.imdecode(np.frombuffer(_jpeg(_RED), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(images.read(path), expected)
    assert inputs.find_inputs(str(tmp_path)) == [path]
    assert cv2.haveImageWriter(f"x{inputs.copy_suffix(path)}") or suffix == ".JFIF"


def test_a_gif_is_an_image_and_an_animated_one_a_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _only_if_built_in(".gif")
    still, moving, cut = tmp_path / "still.gif", tmp_path / "moving.gif", tmp_path / "cut.gif"
    still.write_bytes(gif([_FIRST]))
    moving.write_bytes(gif([_FIRST, 3 - _FIRST]))
    cut.write_bytes(gif([_FIRST])[:40])
    assert [p.name for p in inputs.find_inputs(str(tmp_path)) if inputs.is_video(p)] == ["moving.gif"]
    np.testing.assert_array_equal(images.read(still), _COLOURS[_FIRST])
    assert not caplog.records
    np.testing.assert_array_equal(images.read(moving), _COLOURS[_FIRST])  # in a data set
    assert [r.message for r in caplog.records] == [f"`{moving}` is animated: only its first frame is used"]
    assert not inputs.is_video(tmp_path / "missing.gif")


@pytest.mark.parametrize("suffix", [".avif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_used(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    _only_if_built_in(suffix)
    if not hasattr(cv2, "imwriteanimation"):
        pytest.skip(f"OpenCV {cv2.__version__} does not write animations")
    frames = [np.full((64, 64, 3), colour, np.uint8) for colour in (_RED, _BLUE)]
    animation = cv2.Animation()
    animation.frames, animation.durations = frames, [100, 100]
    path, still = tmp_path / f"moving{suffix}", tmp_path / f"still{suffix}"
    assert cv2.imwriteanimation(str(path), animation)
    assert cv2.imwrite(str(still), frames[0])
    assert (is_animated(path.read_bytes()), is_animated(still.read_bytes())) == (True, False)
    for file in (still, path):
        assert np.abs(images.read(file).astype(int) - frames[0]).max() < 12  # lossy
    assert [r.message for r in caplog.records] == [f"`{path}` is animated: only its first frame is used"]
    for length in range(0, 60, 3):
        is_animated(path.read_bytes()[:length])


def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.mpo", "c.jfif"):
        (folder / name).write_bytes(_jpeg(_RED))
    quiet = ("a.txt", "data.yaml", "b.xml", ".DS_Store", ".hidden.heic", "Thumbs.db", "labels.cache", "LICENSE")
    for name in ("d.heic", "e.HEIC", "f.dng", *quiet):
        (folder / name).touch()
    (folder / "g.heic").mkdir()
    warning = f"3 files of `{folder}` skipped, unsupported suffix: 2 .heic, 1 .dng"
    assert [p.name for p in inputs.find_inputs(str(folder))] == ["a.jpg", "b.mpo", "c.jfif"]
    assert [r.message for r in caplog.records] == [warning]
    for where in (folder, tmp_path):  # once, however often a data set is listed
        assert [p.name for p in reader.list_images(where)[0]] == ["a.jpg", "b.mpo", "c.jfif"]
    assert [r.message for r in caplog.records] == [warning]
    inputs.find_inputs(str(folder / "*.??*"))
    assert caplog.records[-1].message == warning.replace(str(folder), str(folder / "*.??*"))


def test_the_pages_of_a_tiff_after_the_first_are_not_left_out_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second image of type 1 (TIFF 6.0, tag 254) is a small copy of the first, as cameras and scanners add."""
    image, (path, plain) = np.full((8, 6, 3), 77, np.uint8), (tmp_path / "pages.tif", tmp_path / "plain.tif")
    assert cv2.imwritemulti(str(path), [image, image])
    assert cv2.imwrite(str(plain), image)
    for file in (plain, path):
        np.testing.assert_array_equal(images.read(file), image)
    assert [r.message for r in caplog.records] == [f"`{path}` has several pages: only the first is used"]
    data = plain.read_bytes()
    assert data[:4] == b"II*\0"
    first = int.from_bytes(data[4:8], "little")
    link = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    second = len(data).to_bytes(4, "little")
    for kind in (0, 1, 2):
        entry = b"".join(number.to_bytes(size, "little") for number, size in ((254, 2), (4, 2), (1, 4), (kind, 4)))
        two = data[:link] + second + data[link + 4 :] + b"\1\0" + entry + bytes(4)
        assert has_pages(two) == (kind != 1)
        assert not has_pages(two[: len(data)])
