"""Names within a run: none twice, and none that is an input's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from yolotrt_core.detection.output_names import Format, Names
from yolotrt_core.errors import UsageError

FORMS: tuple[Format, ...] = ("json", "coco", "yolo")


def _named(form: Format, *paths: str) -> list[str]:
    sources = [Path(p) for p in paths]
    names = Names(sources, Path("out"), form)
    return [names.target(s).name for s in sources]


@pytest.mark.parametrize("form", FORMS)
def test_a_number_that_follows_is_never_taken(form: Format) -> None:
    paths = ("a/x.jpg", "b/x.jpg", "c/x-2.jpg", "d/x.jpg", "e/x-2.jpg", "v/x.mov", "w/x.mp4")
    named = _named(form, *paths)
    assert len(set(named)) == len(paths)
    assert named[:2] == ["x.jpg", "x-2.jpg"]
    assert named[-2:] == ["x.mp4", "x-2.mp4"]


def test_many_files_of_one_name_are_numbered_at_once() -> None:
    paths = [Path(f"{folder}/x.jpg") for folder in range(20_000)]  # trying every number takes a minute
    began = time.process_time()
    names = Names(paths, Path("out"), "yolo")
    assert time.process_time() - began < 10
    assert [names.name(path) for path in (paths[0], paths[1], paths[-1])] == ["x", "x-2", "x-20000"]


def test_endings_alone_tell_images_apart_but_not_labels() -> None:
    assert _named("json", "x.jpg", "x.png") == ["x.jpg", "x.png"]
    for form in FORMS[1:]:
        assert _named(form, "x.jpg", "x.png") == ["x.jpg", "x-2.png"]


def test_a_image_called_like_a_frame() -> None:
    sources = [Path("video.mp4"), Path("video_1.jpg"), Path("video_01.jpg"), Path("other.mp4")]
    names = Names(sources, Path("out"), "yolo")
    assert names.name(sources[0]) == "video-2"
    assert names.frame_name(sources[0], 1) == "video-2_1"
    assert names.name(sources[3]) == "other"
    assert Names([Path("video.mp4"), Path("video_01.jpg")], Path("out"), "yolo").name(Path("video.mp4")) == "video"
    assert Names(sources, Path("out"), "json").name(sources[0]) == "video"
    odd = [Path("video.mp4"), Path("video:1.jpg")]
    coco = Names(odd, Path("out"), "coco")
    assert coco.image_id(odd[0], 1) != coco.image_id(odd[1])


def test_hosts_that_differ_after_the_last_dot() -> None:
    assert [
        Names([f"rtsp://u:p@10.0.0.{n}/x.mjpg"], Path("out"), "yolo").target(f"rtsp://u:p@10.0.0.{n}/x.mjpg")
        for n in (10, 11)
    ] == [Path("out/stream-10.0.0.10.mp4"), Path("out/stream-10.0.0.11.mp4")]
    names = Names(["camera:0"], Path("out"), "yolo")
    assert names.frame_name("camera:0", 3) == "camera-0_3"


def test_image_ids(caplog: pytest.LogCaptureFixture) -> None:
    sources = [Path(p) for p in ("000000000139.jpg", "x.jpg", "x.png", "40.jpg", "video.mp4")]
    names = Names(sources, Path("out"), "coco")
    assert [names.image_id(s) for s in sources[:4]] == [139, "x", "x-2", 40]
    assert names.image_id(sources[4], 7) == "video:7"
    assert not caplog.records
    sources = [Path(p) for p in ("a/000000000139.jpg", "a/139.jpg", "b/139.jpg", "a/140.jpg")]
    names = Names(sources, Path("out"), "coco")
    assert [names.image_id(s) for s in sources] == [139, "139", "139-2", 140]
    assert [r.getMessage() for r in caplog.records] == [
        "image_id 139 is used by `a/000000000139.jpg`; using the name for `a/139.jpg`: `139`",
        "image_id 139 is used by `a/000000000139.jpg`; using the name for `b/139.jpg`: `139-2`",
    ]


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(b"an image")
    (folder / "video.mp4").write_bytes(b"a video")
    return folder


def test_an_input_is_never_written_over(pics: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pics)
    into = tmp_path / "into"
    into.mkdir()
    (into / "x.jpg").symlink_to(pics / "x.jpg")
    hard = tmp_path / "hard"
    hard.mkdir()
    os.link(pics / "video.mp4", hard / "video.mp4")
    for out, name in (
        (pics, "x.jpg"),
        (pics, "video.mp4"),
        (tmp_path / "link", "x.jpg"),
        (tmp_path / "pics" / ".." / "pics", "video.mp4"),
        (into, "x.jpg"),
        (hard, "video.mp4"),
    ):
        with pytest.raises(UsageError, match=f"the annotated copy `.*{name}` would overwrite") as caught:
            Names([pics / name], out, "json").refuse_inputs(annotate=True)
        assert "`--out`" in str(caught.value.hint)
    # The copy of one input, in the place of another.
    (tmp_path / "x.jpg").write_bytes(b"another")
    with pytest.raises(UsageError, match="would overwrite the input"):
        Names([pics / "x.jpg", tmp_path / "x.jpg"], tmp_path, "json").refuse_inputs(annotate=True)


def test_what_is_no_input_may_be_written_over(pics: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.jpg").write_bytes(b"of the run before")
    Names([pics / "x.jpg", pics / "video.mp4"], out, "json").refuse_inputs(annotate=True)
    (pics / "video.avi").write_bytes(b"a video")
    Names([pics / "video.avi"], tmp_path, "json").refuse_inputs(annotate=True)
    Names(["camera:0"], pics, "json").refuse_inputs(annotate=True)


def test_labels_of_the_inputs_are_never_written_over(tmp_path: Path) -> None:
    pics, labels = tmp_path / "images", tmp_path / "labels"
    pics.mkdir()
    (pics / "x.jpg").write_bytes(b"an image")
    names = Names([pics / "x.jpg"], tmp_path, "yolo")
    names.refuse_inputs(annotate=False)  # there are none yet
    labels.mkdir()
    names.refuse_inputs(annotate=False)
    (labels / "x.txt").write_text("7 .5 .5 .1 .1")
    for annotate in (True, False):
        with pytest.raises(UsageError, match=r"cannot overwrite `.*x\.txt`: it holds the labels of .*x\.jpg"):
            names.refuse_inputs(annotate=annotate)
    Names([pics / "x.jpg"], tmp_path, "json").refuse_inputs(annotate=False)
    Names([pics / "x.jpg"], tmp_path / "out", "yolo").refuse_inputs(annotate=True)
