"""Text files that list images."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.media.inputs import find_inputs, read_list


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, beside it the folder of a list, both with images."""
    for name in ("work/own.jpg", "work/both.jpg", "lists/both.jpg", "lists/a b.png", "lists/v.mp4", "lists/in/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lists" / "in" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "lists"


def _list(place: Path, *lines: str | Path) -> Path:
    file = place / "list.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_paths_are_those_of_the_list_then_those_of_the_working_folder(place: Path) -> None:
    lines = ("\ufeffv.mp4", "", "# both.jpg", "  a b.png  ", "own.jpg\r", "both.jpg", place / "in", "in/*")
    assert find_inputs(str(_list(place, *lines))) == [
        place / "v.mp4",
        place / "a b.png",
        Path("own.jpg"),
        place / "both.jpg",
        place / "in" / "1.jpg",
    ]


def test_what_is_listed_twice_is_read_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = _list(place, "both.jpg", "./in/../both.jpg", place / "both.jpg", "own.jpg")
    assert read_list(file) == [place / "both.jpg", Path("own.jpg")]
    expected = f"`{file}` lists 2 files again, such as `{place}/in/../both.jpg`; each is read once"
    assert caplog.messages == [expected]


def test_missing_files_are_named_with_where_they_were_sought(place: Path) -> None:
    file = _list(place, "no.jpg", "both.jpg", "a.jpg", "b.jpg", "rtsp://u:secret@host/c")
    with pytest.raises(UsageError) as caught:
        find_inputs(str(file))
    assert caught.value.message == f"4 of 5 paths in `{file}` do not exist: `no.jpg`, `a.jpg`, `b.jpg`, ..."
    assert caught.value.hint == f"tried `{place}/no.jpg` and `{Path.cwd()}/no.jpg`"
    file = _list(place, "both.jpg", place / "no.jpg")
    with pytest.raises(UsageError, match="1 of 2 paths") as caught:
        find_inputs(str(file))
    assert caught.value.hint == f"tried `{place}/no.jpg`"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.1 0.1", r"lists labels, not images: `0 0\.5"),
        ("rtsp://u:secret@host/c", r"lists the live source `rtsp://\*\*\*@host/c`"),
        ("in/1.txt", r"1\.txt`, listed in `.*list\.txt`, is not an image or video"),
        ("list.txt", r"list\.txt`, listed in `.*list\.txt`, is not an image or video"),
        ("# nothing", r"the list `.*list\.txt` has no path"),
    ],
)
def test_what_is_no_list_of_images(place: Path, line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_inputs(str(_list(place, line)))


def test_labels_beside_images_are_not_lists(place: Path) -> None:
    assert find_inputs(str(place / "in")) == find_inputs(str(place / "in" / "*")) == [place / "in" / "1.jpg"]
