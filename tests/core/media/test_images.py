"""Finding and reading images and videos."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.media import images, inputs
from yolotrt_core.media.jpeg_header import upright_size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gradient = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    for name in ("b.png", "a.PNG", "c.bmp"):
        cv2.imwrite(str(tmp_path / name), gradient)
    (tmp_path / "notes.json").write_text("x")
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "sub" / "d.png"), gradient)
    return tmp_path


def test_find(folder: Path) -> None:
    assert [p.name for p in inputs.find_inputs(str(folder))] == ["a.PNG", "b.png", "c.bmp"]
    assert [p.name for p in inputs.find_inputs(str(folder / "*.png"))] == ["b.png"]
    assert [p.name for p in inputs.find_inputs(str(folder / "**" / "*.png"))] == ["b.png", "d.png"]
    assert inputs.find_inputs(str(folder / "c.bmp")) == [folder / "c.bmp"]
    for wrong, words in {
        str(folder / "none.png"): "no such file or folder",
        str(folder / "notes.json"): "unsupported file suffix",
        str(folder / "*.gif"): "matches the pattern",
    }.items():
        with pytest.raises(UsageError, match=words):
            inputs.find_inputs(wrong)


def test_a_file_with_magic_in_its_name_is_a_file(folder: Path) -> None:
    odd = (folder / "b.png").rename(folder / "b[1].png")
    assert inputs.find_inputs(str(odd)) == [odd]


def test_read_gives_bgr(tmp_path: Path) -> None:
    blue = np.zeros((4, 6, 3), np.uint8)
    blue[:, :, 0] = 200
    cv2.imwrite(str(tmp_path / "blue.png"), blue)
    assert np.array_equal(images.read(tmp_path / "blue.png"), blue)
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 6), 7, np.uint8))
    assert images.read(tmp_path / "grey.png").shape == (4, 6, 3)


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    good, encoded = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))
    assert good
    data = encoded.tobytes()
    # A minimal EXIF block whose one entry says "rotate by 90 degrees" (orientation 6).
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "turned.jpg").write_bytes(data[:2] + segment + data[2:])
    assert images.read(tmp_path / "turned.jpg").shape == (40, 20, 3)


@pytest.mark.parametrize(("content", "words"), [(b"", "is an empty file"), (b"junk", "cannot decode the image")])
def test_unreadable(tmp_path: Path, content: bytes, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        images.read(tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="cannot read the image"):
        images.read(tmp_path / "gone.jpg")
    assert capfd.readouterr().err == ""


class Memory:
    """Room for images; remembers what it gave."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        self.given.append(np.empty(shape, np.uint8))
        return self.given[-1]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp"])
def test_pixels_go_where_there_is_room_for_them(tmp_path: Path, ending: str) -> None:
    path, room = tmp_path / f"ü{ending}", Memory()
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    good, data = cv2.imencode(ending, cv2.resize(coarse, (90, 70)))
    assert good
    path.write_bytes(data.tobytes())
    frame = images.read(path, room)
    np.testing.assert_array_equal(frame, images.read(path))
    (given,) = room.given
    assert np.shares_memory(frame, given)


def test_a_turned_or_broken_jpeg_is_read_as_without_room(tmp_path: Path) -> None:
    good, data = cv2.imencode(".jpg", np.full((20, 40, 3), 90, np.uint8))
    assert good
    plain = data.tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    path, room = tmp_path / "turned.jpg", Memory()
    path.write_bytes(turned)
    frame = images.read(path, room)
    assert frame.shape == (40, 20, 3)
    np.testing.assert_array_equal(frame, images.read(path))
    assert frame is room.given[-1]
    (tmp_path / "bad.jpg").write_bytes(plain[:30])
    with pytest.raises(UsageError, match="cannot decode the image"):
        images.read(tmp_path / "bad.jpg", Memory())


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://user:secret@10.0.0.1:554/x", "rtsp://***@10.0.0.1:554/x"),
        ("rtsp://user:se@cr/e:t#@10.0.0.1/x", "rtsp://***@10.0.0.1/x"),
        ("http://cam/snap?user=a&password=secret", "http://cam/snap?***"),
        ("http://cam/live", "http://cam/live"),
        ("camera:0", "camera:0"),
        ("in/what?.jpg", "in/what?.jpg"),
        ("in/me@home.jpg", "in/me@home.jpg"),
    ],
)
def test_addresses_are_shown_without_what_is_secret(source: str, shown: str) -> None:
    assert inputs.redact(source) == shown


def test_no_error_tells_a_password() -> None:
    with pytest.raises(UsageError, match=r"no such file or folder: `ftp://\*\*\*@cam/x`"):
        inputs.find_inputs("ftp://user:secret@cam/x")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://me:secret@cam:554/door?key=hidden", "rtsp://***@cam:554/door?***"),
        ("rtsp://cam/user=admin&password=secret&channel=1", "rtsp://cam/user=***&password=***&channel=1"),
        ("rtsp://cam/Token=secret/1", "rtsp://cam/Token=***/1"),
        ("http://cam/door=1", "http://cam/door=1"),
        ("images/key=1.jpg", "images/key=1.jpg"),
    ],
)
def test_secrets_of_an_address_are_not_shown(address: str, shown: str) -> None:
    assert inputs.redact(address) == shown


def test_half_an_address_has_a_name() -> None:
    assert inputs.live_name("http://[::1") == "stream-unknown"
    assert inputs.live_name("http://[::1]:80/x") == "stream-__1"


@pytest.mark.parametrize("side", [40, 400])  # files of 2 and 200 KB
def test_the_size_of_a_jpeg_is_read_from_its_ends(tmp_path: Path, side: int) -> None:
    path = tmp_path / "x.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (side, side + 8, 3), np.uint8))
    plain = path.read_bytes()
    turned = b"\x01\x12\x00\x03"

    def with_exif(block: bytes) -> bytes:
        return plain[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + plain[2:]

    for data, size in {
        plain: (side, side + 8),
        with_exif(bytes(30_000)): (side, side + 8),
        with_exif(bytes(29_000) + turned + bytes(900)): None,
        with_exif(bytes(9_000) + turned + bytes(20_900)): None,
        plain[: len(plain) * 3 // 4]: None,
        plain + bytes(2): None,
        b"": None,
        b"\x89PNG" + bytes(30_000): None,
    }.items():
        path.write_bytes(data)
        assert images.plain_jpeg_size(path) == size
        assert upright_size(data) == size
    path.unlink()
    with pytest.raises(FileNotFoundError):
        images.plain_jpeg_size(path)


def test_the_version_of_opencv_is_told_without_importing_it() -> None:
    code = (
        "import sys; from yolotrt_core.media.images import opencv_version; told = opencv_version();"
        "assert 'cv2' not in sys.modules and 'numpy' not in sys.modules;"
        "import cv2; assert told.startswith(cv2.__version__), told"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("found", ["a file that tells nothing", "no file"])
def test_an_opencv_that_tells_no_version_is_asked(found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if found != "no file":
        (tmp_path / "version.py").write_text("other = 1\n")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None, origin=f"{tmp_path}/cv2.so")
    )
    assert images.opencv_version.__wrapped__() == cv2.__version__
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert images.opencv_version.__wrapped__() == ""
