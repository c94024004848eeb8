"""What `detect` writes and refuses to write, which classes it takes, and how it is stopped on files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

from video_files import destroy, steady, write_video
from yolotrt_core.cli import detect
from yolotrt_core.detection.summary import Summary
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.media import video

from .conftest import ROOT, Run


def _video(path: Path, frames: int) -> None:
    image = cv2.imread(str(sample_path()))
    assert image is not None
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, image.shape[1::-1])
    for _ in range(frames):
        writer.write(image)
    writer.release()


@pytest.mark.parametrize("out", ["../pics", "../link"])
@pytest.mark.parametrize("name", ["x.jpg", "video.mp4"])
def test_an_input_is_never_written_over(run: Run, tmp_path: Path, name: str, out: str) -> None:
    pics = tmp_path / "pics"
    pics.mkdir()
    (tmp_path / "link").symlink_to(pics)
    if name == "x.jpg":
        shutil.copy(sample_path(), pics / name)
    else:
        _video(pics / name, 2)
    before = (pics / name).read_bytes()
    for source in (pics / name, pics):
        ran = run("detect", str(source), "--builder", "onnxruntime", "--out", out)
        assert ran.code == 2
        first, hint = ran.err.splitlines()
        assert first.startswith(f"error: the annotated copy `{out}/{name}` would overwrite the input `")
        assert hint == "hint: choose another folder with `--out`"
        assert ran.out == ""
    assert (pics / name).read_bytes() == before
    assert [p.name for p in pics.iterdir()] == [name]
    assert not (tmp_path / "store").exists()  # before any work


def test_every_file_of_a_run_has_its_own_name(run: Run, warm: Path, tmp_path: Path) -> None:
    paths = ["a/x.jpg", "b/x.jpg", "c/x-2.jpg", "d/x.png", "d/000139.jpg", "d/139.jpg"]
    grey = np.full((64, 64, 3), 114, np.uint8)  # nothing to find in
    for number, name in enumerate(paths):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            cv2.imwrite(str(path), grey)
        else:
            cv2.imwrite(str(path), cv2.imread(str(sample_path())))
    common = ("detect", str(tmp_path / "in" / "**" / "*.*"), "--builder", "onnxruntime")
    ran = run(*common, "--format", "yolo", "--out", "o", store=warm / "store")
    assert ran.code == 0, ran.err
    out = tmp_path / "here" / "o"
    table = dict(re.findall(r"(\S+\.(?:jpg|png)) .* o/(\S+)", ran.out))
    assert {Path(path).relative_to(tmp_path / "in").as_posix() for path in table} == set(paths)
    assert len(set(table.values())) == len(paths)
    for path, written in table.items():
        height = cv2.imread(path).shape[0]
        assert cv2.imread(str(out / written)).shape[0] == height
        labels = (out / "labels" / f"{Path(written).stem}.txt").read_text()
        assert bool(labels) == (height != 64)
    assert len(list((out / "labels").iterdir())) == len(paths)
    ran = run(*common, "--format", "coco", "--out", "p", store=warm / "store")
    assert ran.code == 0, ran.err
    ids = {entry["image_id"] for entry in json.loads((tmp_path / "here" / "p" / "predictions.json").read_text())}
    assert ids == {"x", "x-2-2", 139}
    assert re.search(
        r"^warning: image_id 139 is used by `.*000139.jpg`; using the name for `.*139.jpg`: `139`$", ran.err, re.M
    )


def test_without_annotated_copies_the_results_are_the_same(run: Run, warm: Path, tmp_path: Path) -> None:
    pics = tmp_path / "pics"
    pics.mkdir()
    shutil.copy(sample_path(), pics / "x.jpg")
    _video(pics / "video.mp4", 3)
    before = {p.name: p.read_bytes() for p in pics.iterdir()}
    (tmp_path / "recipe.toml").write_text('[detect]\nannotate = "off"\n')
    model = ("--builder", "onnxruntime", str(pics))
    for form, name, single in (("json", "detections.json", ""), ("yolo", "labels", "/x.txt")):
        outs = {}
        for out, flags in (("on", ()), ("off", ("--annotate", "off")), ("by", ("--recipe", "../recipe.toml"))):
            ran = run("detect", *model, "--format", form, "--out", out, *flags, store=warm / "store")
            assert ran.code == 0, ran.err
            outs[out] = [line.split()[-1] for line in ran.out.splitlines()[1:]]
        here = tmp_path / "here"
        assert outs["on"] == ["on/x.jpg", "on/video.mp4"]
        for out in ("off", "by"):
            assert outs[out] == [f"{out}/{name}{single}", f"{out}/{name}"]
            assert [p.name for p in (here / out).iterdir()] == [name]
            if form == "json":
                found = [json.loads((here / o / name).read_text())["images"] for o in ("on", out)]
            else:
                found = [{p.name: p.read_text() for p in (here / o / name).iterdir()} for o in ("on", out)]
            assert len(found[0]) == 4
            assert found[0] == found[1]
            shutil.rmtree(here / out)
        shutil.rmtree(here / "on")
    ran = run("detect", *model, "--annotate", "off", "--out", str(pics), store=warm / "store")  # nothing to write over
    assert ran.code == 0, ran.err
    assert {p.name: p.read_bytes() for p in pics.iterdir() if p.name != "detections.json"} == before


def test_of_many_files_the_sum_is_shown(run: Run, warm: Path, tmp_path: Path) -> None:
    pics = tmp_path / "pics"
    pics.mkdir()
    for index in range(101):
        shutil.copy(sample_path(), pics / f"{index:03}.jpg")
    common = ("detect", "--builder", "onnxruntime", "--annotate", "off")
    ran = run(*common, str(pics), store=warm / "store")
    assert ran.code == 0, ran.err
    heading, *rows, _, last = ran.out.splitlines()
    assert heading.split() == ["class", "found", "in", "files"]
    images = json.loads((tmp_path / "here" / "detections" / "detections.json").read_text())["images"]
    one = Counter(d["label"] for d in images[0]["detections"])
    assert len(one) > 3
    assert [re.split(r" {2,}", row) for row in rows] == [[n, str(101 * k), "101"] for n, k in one.most_common()]
    assert last == f"{101 * one.total()} objects in 101 files; written to detections"
    ran = run(*common, "--max-det", "1", str(pics), store=warm / "store")
    assert f"101 objects in 101 files, {101 * (one.total() - 1)} more dropped by --max-det" in ran.out
    ran = run(*common, "--conf", "1", str(pics), store=warm / "store")
    assert ran.out == "0 objects in 101 files; written to detections\n"
    (pics / "100.jpg").unlink()
    ran = run(*common, str(pics), store=warm / "store")
    assert len(ran.out.splitlines()) == 101


def test_a_video_of_many_classes_is_told_in_a_few_words() -> None:
    counts = Counter({number: 100 - number for number in range(14)})
    labels = [f"kind{number}" for number in range(14)]
    _, words, _ = detect._row(Summary(Path("video.mp4"), Path("out"), counts, 0, 3), labels)
    assert words.startswith("3 frames: 100 kind0, 99 kind1, ")
    assert words.endswith(", 92 kind8, 5 more classes")
    _, words, _ = detect._row(Summary(Path("x.jpg"), Path("out"), Counter({2: 1, 1: 3}), 4, None), labels)
    assert words == "3 kind1, 1 kind2 (4 more dropped by --max-det)"


def test_classes_by_name(run: Run, warm: Path) -> None:
    def found(*flags: str) -> Any:
        ran = run("detect", "sample", "--builder", "onnxruntime", "--json", *flags, store=warm / "store")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    everything = found()
    labels, every = everything["labels"], everything["images"][0]["detections"]
    bolt, nut = labels.index("bolt"), labels.index("nut")
    for words in ("bolt,nut", f"{bolt}, nut", f"{bolt},{nut},nut"):
        document = found("--classes", words)
        assert document["selection"]["classes"] == [bolt, nut]
        assert document["images"][0]["detections"] == [d for d in every if d["class_id"] in (bolt, nut)]


def test_classes_that_are_none(run: Run, warm: Path, tmp_path: Path) -> None:
    def refused(classes: str) -> str:
        ran = run("detect", "sample", "--builder", "onnxruntime", f"--classes={classes}", store=warm / "store")
        assert (ran.code, ran.out) == (2, "")
        assert not (tmp_path / "here" / "detections").exists()
        return ran.err[ran.err.index("error: ") :]

    for classes in ("", ",", "0,,1"):
        expected = "error: `--classes` expects class ids or names, for example 0,2 or person,dog"
        assert refused(classes).splitlines()[0] == f"{expected}, found `{classes}`"
    told = refused("Bolts")
    assert "`--classes` names `Bolts`, which the model does not have" in told
    assert re.search(r"^hint: did you mean `bolt` \(\d\)\?$", told, re.M)
    assert re.search(r"^hint: it has classes 0 to \d: 0 \w+, 1 \w+", refused("person"), re.M)
    assert "class 99 does not exist: the model has classes 0 to" in refused("99")


def test_coco_says_what_it_is(run: Run, warm: Path) -> None:
    told = " ".join(run("detect", "--help").out.split())
    assert "coco: category_id is the class index of the model" in told
    common = ("detect", "sample", "--builder", "onnxruntime", "--format", "coco", "--json", "--show-timing")
    printed = json.loads(run(*common, store=warm / "store").out)
    assert {tuple(entry) for entry in printed} == {("image_id", "category_id", "bbox", "score")}
    schema = json.loads((ROOT / "yolotrt_core" / "schemas" / "detect.json").read_text())
    assert "bare list" in schema["description"]
    ran = run(*common, "--category-ids", "coco", store=warm / "store")
    assert ran.code == 2
    assert "`--category-ids coco` needs a model of COCO's classes, found class `" in ran.err


def test_two_addresses_are_refused_without_their_passwords(run: Run) -> None:
    ran = run("detect", "rtsp://u:secret@a/x", "rtsp://u:secret@b/y")
    assert ran.code == 1
    assert "found `rtsp://***@a/x` and `rtsp://***@b/y`" in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize("command", ["yolotrt", "invoke"])
@pytest.mark.parametrize("source", ["video.mp4", "pictures"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_found_until_a_signal_is_kept(
    warm: Path, tmp_path: Path, command: str, source: str, number: signal.Signals, code: int
) -> None:
    if source == "video.mp4":
        _video(tmp_path / source, 900)
    else:
        (tmp_path / source).mkdir()
        for index in range(900):
            (tmp_path / source / f"{index:03}.jpg").symlink_to(sample_path())
    out = tmp_path / "detections"
    begun = ".partial-*.mp4" if source == "video.mp4" else "*.jpg"
    program = [str(Path(sys.executable).with_name(command))]
    if command == "invoke":
        program += ["--search-root", str(ROOT)]
    running = subprocess.Popen(
        [*program, "detect", source, "--builder", "onnxruntime", "--json"],
        # A test run in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "YOLOTRT_STORE": str(warm / "store")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list(out.glob(begun)) and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(number)
    printed, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "stopped before the end: partial results written to `detections`" in err
    assert err.splitlines()[-1].startswith("cancelled")
    assert "Traceback" not in err
    images = json.loads(printed)["images"]
    assert 0 < len(images) < 900
    assert json.loads((out / "detections.json").read_text())["images"] == images
    if source == "video.mp4":
        assert video.count_frames(out / "video.mp4") == len(images)
        assert sorted(p.name for p in out.iterdir()) == ["detections.json", "video.mp4"]
    else:
        drawn = [f"{index:03}.jpg" for index in range(len(images))]
        assert [Path(image["path"]).name for image in images] == drawn
        assert sorted(p.name for p in out.iterdir()) == [*drawn, "detections.json"]


def test_json_lines_and_printed_labels_have_the_same_entries(run: Run, warm: Path, tmp_path: Path) -> None:
    _video(tmp_path / "video.avi", 3)
    common = ("detect", str(tmp_path / "video.avi"), "--builder", "onnxruntime", "--annotate", "off", "--json")
    images = json.loads(run(*common, store=warm / "store").out)["images"]
    assert [image["frame"] for image in images] == [0, 1, 2]
    ran = run(*common, "--format", "jsonl", "--out", "lines", store=warm / "store")
    assert ran.code == 0, ran.err
    assert [json.loads(line) for line in ran.out.splitlines()] == images
    assert (tmp_path / "here" / "lines" / "detections.jsonl").read_text() == ran.out
    labels = run(*common, "--format", "yolo", "--out", "labels", store=warm / "store")
    assert json.loads(labels.out)["images"] == images
    assert [p.name for p in (tmp_path / "here" / "labels").iterdir()] == ["labels"]


def test_what_was_found_until_sigkill_is_on_disk_and_never_written_over(run: Run, warm: Path, tmp_path: Path) -> None:
    here, pics = tmp_path / "here", tmp_path / "pics"
    pics.mkdir()
    for index in range(900):
        (pics / f"{index:03}.jpg").symlink_to(sample_path())
    (expected,) = json.loads(run("detect", "sample", "--builder", "onnxruntime", "--json", store=warm / "store").out)[
        "images"
    ]
    program = [str(Path(sys.executable).with_name("yolotrt")), "detect", str(pics), "--builder", "onnxruntime"]
    environment = {**os.environ, "YOLOTRT_STORE": str(warm / "store")}
    running = subprocess.Popen([*program, "--out", "killed"], env=environment, cwd=here, stderr=subprocess.DEVNULL)
    partial = here / "killed" / "detections.json.partial"
    until = time.monotonic() + 60
    while not (partial.exists() and partial.read_text().count('"frame"') > 10) and time.monotonic() < until:
        time.sleep(0.02)
    running.kill()
    running.wait(timeout=60)
    left = partial.read_text()
    entries = [json.loads(line.removesuffix(",")) for line in left.splitlines() if line.startswith('  {"path"')]
    assert 10 < len(entries) < 900
    for index, entry in enumerate(entries):
        assert entry == {**expected, "path": str(pics / f"{index:03}.jpg")}
    ran = run("detect", "sample", "--builder", "onnxruntime", "--out", "killed", store=warm / "store")
    assert ran.code == 0
    assert "warning: kept `killed/detections.json.partial`: results of a run that did not end" in ran.err
    assert partial.read_text() == left
    assert len(json.loads((here / "killed" / "detections.json").read_text())["images"]) == 1


def test_a_few_frames_that_cannot_be_decoded_are_a_warning(run: Run, warm: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mov", [*steady(20), *(100 + t for t in steady(20))])
    destroy(path, 7)
    times = [t for number, t in enumerate([*steady(20), *(100 + t for t in steady(20))]) if number != 7]
    ran = run("detect", str(path), "--builder", "onnxruntime", "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    warning = f"1 frame of the video `{path}` cannot be decoded; the results include 39 frames"
    assert f"warning: {warning}" in " ".join(ran.err.split())
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads((ROOT / "yolotrt_core" / "schemas" / "detect.json").read_text()))
    assert document["missing"] == [{"path": str(path), "frames": 1, "reason": warning}]
    assert [image["frame"] for image in document["images"]] == list(range(39))
    assert [image["time"] for image in document["images"]] == pytest.approx(times, abs=0.001)
    with video.open_video(tmp_path / "here" / "detections" / "video.mp4") as annotated:
        assert [frame.seconds for frame in annotated] == pytest.approx(times, abs=0.001)
    few = run("detect", str(path), "--builder", "onnxruntime", "--max-frames", "5", store=warm / "store")
    assert (few.code, "cannot be decoded" in few.err) == (0, False)


def test_a_truncated_video_is_reported(run: Run, warm: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.avi"
    _video(whole, 60)
    data = whole.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: len(data) // 2])
    ran = run("detect", str(cut), "--builder", "onnxruntime", "--json", store=warm / "store")
    assert ran.code == 2
    kept = len(json.loads(ran.out)["images"])
    assert 20 < kept < 40
    missing = len(data) - len(data) // 2
    assert f"the video `{cut}` is truncated ({missing} bytes missing); the results include {kept} frames" in ran.err
    assert (tmp_path / "here" / "detections" / "cut.mp4").exists()
    shutil.copy(cut, tmp_path / "other.avi")
    several = run("detect", str(tmp_path / "*.avi"), "--builder", "onnxruntime", store=warm / "store")
    assert several.code == 2
    assert "2 of 3 files could not be read completely" in several.err
    told = " ".join(several.err.split())
    assert all(f"the video `{tmp_path / name}` is truncated" in told for name in ("cut.avi", "other.avi"))
    few = run("detect", str(cut), "--builder", "onnxruntime", "--max-frames", "10", store=warm / "store")
    assert few.code == 0, few.err
    assert run("detect", str(whole), "--builder", "onnxruntime", store=warm / "store").code == 0
