"""Who reads images for an engine: threads, processes or the device; it is always the same that comes."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from image_files import assert_as_read_here, memory_of

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference import image_loader
from yolotrt_core.media import images
from yolotrt_core.media.frames import HostBuffer
from yolotrt_core.media.jpeg_header import upright_size


class OnDevice:
    """An image that is elsewhere."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.shape, self._pixels = pixels.shape, pixels

    def to_host(self) -> np.ndarray:
        return self._pixels


class Fed:
    """A detector that has a GPU, as far as reading goes; its decoder is OpenCV, and leaves every fifth file to it."""

    program = object()
    image_bits = 16
    reads_alpha = False

    def __init__(self, *, locks: bool = True, decodes: bool = False) -> None:
        self.locks, self.decodes_files = locks, decodes
        self.locked = self.asked = 0

    def page_lock(self, memory: np.ndarray) -> object:
        if not self.locks:
            raise StageError("no room")
        self.locked += memory.nbytes
        return object()

    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
        return [np.empty(shape, np.uint8) for _ in range(count)]

    def decode(self, files: Sequence[bytes]) -> list[OnDevice | None]:
        self.asked += len(files)
        takes = [bool(number % 5 and upright_size(file)) for number, file in enumerate(files)]
        return [
            OnDevice(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)) if takes[number] else None
            for number, file in enumerate(files)
        ]


@pytest.mark.parametrize(
    ("many", "locks", "by_processes"), [(1200, True, True), (1201, True, False), (1200, False, False)]
)
def test_many_images_for_a_gpu_are_read_by_processes_once_these_have_started(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, many: int, locks: bool, by_processes: bool
) -> None:
    cv2.imwrite(str(files[34].with_suffix(".jpg")), images.read(files[34]))
    files[34] = files[34].with_suffix(".jpg")
    monkeypatch.setattr(image_loader, "_MANY", many)
    monkeypatch.setattr(image_loader, "processors", lambda: 4)
    detector = Fed(locks=locks)
    found, shared = [], 0
    for one in image_loader.read_ahead(files * 20, detector):  # type: ignore[arg-type]
        shared += isinstance(one, np.ndarray) and isinstance(memory_of(one), HostBuffer)
        found.append(one if isinstance(one, UsageError) else one.copy())
        if by_processes and not shared:
            time.sleep(0.005)  # or threads have read them all before any process has started
    assert_as_read_here(found, files * 20)
    assert bool(detector.locked) == by_processes
    assert (0 < shared < 1200 - 64) == by_processes


def test_a_device_decodes_what_it_can_and_opencv_the_rest(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Fed(decodes=True)
    found = list(image_loader.decode_ahead(files, detector))  # type: ignore[arg-type]
    assert detector.asked == 60
    on_device = [one for one in found if isinstance(one, OnDevice)]
    # Of groups of 16, 16, 16 and 12 it leaves 4, 4, 4 and 3, the missing file among them; and the broken and the PNG.
    assert len(on_device) == 60 - 15 - 2
    assert_as_read_here([one.to_host() if isinstance(one, OnDevice) else one for one in found], files)  # type: ignore[misc]


@pytest.mark.parametrize("decodes", [False, True])
def test_a_device_is_not_asked_where_files_are_of_many_kinds(files: list[Path], decodes: bool) -> None:
    detector = Fed(decodes=decodes)
    found = list(image_loader.decode_ahead(files[30:40], detector))  # type: ignore[arg-type]
    assert detector.asked == 0
    assert_as_read_here(found, files[30:40])  # type: ignore[arg-type]


def test_a_sample_says_what_files_are(files: list[Path], tmp_path: Path) -> None:
    assert sorted(images.plain_jpeg_sizes(files[:5])) == [(40 + i, 50 + i) for i in range(5)]
    assert sorted(images.plain_jpeg_sizes(files[20:23])) == [(41, 52), (46, 50)], "one that is missing says nothing"
    assert images.plain_jpeg_sizes(files[33:36]) == [], "a PNG file"
    assert len(images.plain_jpeg_sizes(files[14:21] * 3 + files[22:34] + files[34:35])) == 33, "one PNG file of many"
    assert images.plain_jpeg_sizes([tmp_path / "missing.jpg"]) == []
    assert isinstance(images.attempt(files[13]), UsageError)


def test_big_images_are_not_read_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number:03}.jpg" for number in range(120)]
    cv2.imwrite(str(paths[0]), np.zeros((60, 80, 3), np.uint8))
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    monkeypatch.setattr(image_loader, "processors", lambda: 3)
    for decodes in (False, True):
        ahead = image_loader.decode_ahead if decodes else image_loader.read_ahead
        monkeypatch.setattr(image_loader, "_MAX_BYTES", 1 << 30)
        assert _most_alive(ahead, paths, decodes) > 60, "small ones are"
        monkeypatch.setattr(image_loader, "_MAX_BYTES", 20 * 60 * 80 * 3)
        assert _most_alive(ahead, paths, decodes) <= 20 + 2


def _most_alive(ahead: Callable[..., Iterator[object]], paths: list[Path], decodes: bool) -> int:
    """Return how many images were there at once for a consumer who is slower than reading."""
    made: list[weakref.ref[Any]] = []
    most = 0

    class Counted(Fed):
        def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
            frame = np.empty(shape, np.uint8)
            made.append(weakref.ref(frame))
            return [frame]

        def decode(self, files: Sequence[bytes]) -> list[OnDevice | None]:
            found: list[OnDevice | None] = [OnDevice(np.zeros((60, 80, 3), np.uint8)) for _ in files]
            made.extend(map(weakref.ref, found))
            return found

    for number, _ in enumerate(ahead(paths, Counted(decodes=decodes))):
        if number % 10 == 0:
            time.sleep(0.05)
        most = max(most, sum(one() is not None for one in made))
    return most


def test_images_come_from_ordinary_memory_when_no_more_can_be_locked(files: list[Path]) -> None:
    class Full(Fed):
        def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
            raise MemoryError

    assert_as_read_here(list(image_loader.read_ahead(files, Full())), files)  # type: ignore[arg-type]
