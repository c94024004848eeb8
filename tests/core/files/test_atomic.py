"""Files written whole or not at all, by one writer or by many."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from yolotrt_core.files.atomic import atomic_path, write_atomic


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    contents = [str(number) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        for written in [pool.submit(write_atomic, target, content) for content in contents * 50]:
            written.result()
    assert target.read_text() in contents
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_inside_another(tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    with atomic_path(target) as slow:
        slow.write_text("begun first")
        write_atomic(target, "done first")
        assert target.read_text() == "done first"
        assert slow.suffix == ".mp4"
    assert target.read_text() == "begun first"


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    write_atomic(target, "before")

    def fail() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 251 + ".jpg")
    write_atomic(target, "x")
    assert target.read_text() == "x"
