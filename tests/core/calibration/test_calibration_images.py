"""Which images are chosen, and what happens to those that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.calibration.images import Batches, CalibrationData, choose, digest_of_images
from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import preprocess


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty small images of different sizes."""
    place = tmp_path / "pictures"
    place.mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        frame = random.integers(0, 256, (30 + number, 40, 3), np.uint8)
        assert cv2.imwrite(str(place / f"{number:02}.png"), frame)
    return place


def test_the_choice_is_the_same_every_time_and_follows_the_seed(folder: Path) -> None:
    first, again = (choose(CalibrationData(folder, 8)) for _ in range(2))
    assert first == again
    assert len(first.names) == 8
    other = choose(CalibrationData(folder, 8, seed=1))
    assert other.names != first.names
    assert other.sha256 != first.sha256


def test_the_choice_is_pinned(folder: Path) -> None:
    """A change of the order would silently be another calibration on every machine."""
    assert choose(CalibrationData(folder, 5)).names == ("00.png", "15.png", "17.png", "13.png", "01.png")


def test_the_digest_follows_content_and_order_not_the_place(folder: Path, tmp_path: Path) -> None:
    before = choose(CalibrationData(folder, 8)).sha256
    moved = folder.rename(tmp_path / "moved")
    assert choose(CalibrationData(moved, 8)).sha256 == before
    (moved / choose(CalibrationData(moved, 8)).names[3]).write_bytes(b"other")
    assert choose(CalibrationData(moved, 8)).sha256 != before


def test_the_digest_follows_what_decodes_and_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of_images(["0" * 64])
    assert digest_of_images(["0" * 64]) == before
    monkeypatch.setattr("yolotrt_core.media.images.opencv_version", lambda: "4.0")
    assert digest_of_images(["0" * 64]) != before


def test_batches_are_the_letterboxed_images(folder: Path) -> None:
    chosen = choose(CalibrationData(folder, 6))
    batches = Batches(chosen, (64, 32))
    seen = np.concatenate(list(batches))
    expected = np.concatenate([preprocess([cv2.imread(str(f))], (64, 32))[0] for f in chosen.files])
    np.testing.assert_array_equal(seen, expected)
    assert batches.facts() == {"pictures": 6, "skipped": [], "seed": 0, "used": list(chosen.names)}


def test_an_unreadable_image_among_good_ones_is_skipped_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "05.png").write_bytes(b"no image")
    (folder / "06.png").write_bytes(b"")
    batches = Batches(choose(CalibrationData(folder)), (32, 32))
    assert sum(len(b) for b in batches) == 18
    assert sorted(batches.skipped) == ["05.png", "06.png"]
    assert caplog.text.count("; skipped") == 2


def test_over_a_tenth_unreadable_is_an_error(folder: Path) -> None:
    for number in (1, 2, 3):
        (folder / f"{number:02}.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="3 of 20 calibration images cannot be read, over 10%"):
        list(Batches(choose(CalibrationData(folder)), (32, 32)))


def test_too_few_images_warn_with_the_number_that_is_enough(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        choose(CalibrationData(folder))
    assert "only 20 calibration images: at least 64 are recommended" in caplog.text


def test_a_image_that_changes_in_between(folder: Path) -> None:
    chosen = choose(CalibrationData(folder))
    assert cv2.imwrite(str(chosen.files[2]), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UsageError, match="changed during calibration"):
        list(Batches(chosen, (32, 32)))


@pytest.mark.parametrize("make", [True, False])
def test_no_images(tmp_path: Path, make: bool) -> None:
    place = tmp_path / "empty"
    if make:
        place.mkdir()
    with pytest.raises(UsageError, match="no image in" if make else "does not exist"):
        choose(CalibrationData(place))
