"""Ending a live source: Ctrl-C keeps everything, and says so while it runs."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yolotrt_core.cli import detect
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.media import video

from .conftest import COMMANDS, ROOT, Ran

ENDLESS = 100_000


class Camera:
    """A camera that sends so many frames, then nothing; its address holds what nobody may print."""

    def __init__(self, frames: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("camera.py")), str(sample_path()), str(frames)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = f"http://user:secret@127.0.0.1:{int(self._line())}/live?token=hidden"

    def wait_for_silence(self) -> None:
        assert self._line() == "silent\n"
        time.sleep(0.5)  # what is underway arrives

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def camera() -> Iterator[Callable[[int], Camera]]:
    started: list[Camera] = []

    def start(frames: int) -> Camera:
        started.append(Camera(frames))
        return started[-1]

    yield start
    for each in started:
        each.close()


def _detect(command: str, here: Path, store: Path, *arguments: str, stderr: int) -> subprocess.Popen[str]:
    program = [str(Path(sys.executable).with_name(command))]
    if command == "invoke":
        program += ["--search-root", str(ROOT)]
    here.mkdir(exist_ok=True)
    environment = {**os.environ, "YOLOTRT_STORE": str(store), "no_proxy": "127.0.0.1", "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    return subprocess.Popen(
        [*program, "detect", *arguments, "--builder", "onnxruntime"],
        # A test run in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment,
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def _until(running: subprocess.Popen[str], there: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def _ended(running: subprocess.Popen[str], number: signal.Signals) -> Ran:
    running.send_signal(number)
    out, err = running.communicate(timeout=20)  # less than OpenCV waits for a silent camera
    for word in ("Traceback", "secret", "hidden"):
        assert word not in out + err
    return Ran(running.returncode, out, err)


def _recorded(running: subprocess.Popen[str], here: Path) -> Path:
    """Wait for the one folder of a recording."""
    folders: list[Path] = []

    def there() -> bool:
        folders[:] = (here / "detections").glob("*")
        return bool(folders)

    _until(running, there)
    (folder,) = folders
    assert re.fullmatch(r"stream-127\.0\.0\.1-\d{8}-\d{6}", folder.name)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("frames", "number", "code"),
    [(ENDLESS, signal.SIGINT, 0), (5, signal.SIGINT, 0), (ENDLESS, signal.SIGTERM, 143)],
    ids=["ctrl-c", "ctrl-c on a silent one", "sigterm"],
)
def test_what_was_recorded_is_kept(
    warm: Path,
    tmp_path: Path,
    camera: Callable[[int], Camera],
    command: str,
    frames: int,
    number: signal.Signals,
    code: int,
) -> None:
    here, watched = tmp_path / "here", camera(frames)
    running = _detect(command, here, warm / "store", watched.address, "--json", stderr=subprocess.PIPE)
    out = _recorded(running, here)
    if frames == ENDLESS:
        _until(running, lambda: any(clip.stat().st_size for clip in out.glob(".partial-*.mp4")))
    else:  # fewer than are taken together: the video begins when it ends
        watched.wait_for_silence()
    ran = _ended(running, number)
    assert ran.code == code, ran.err
    images = json.loads(ran.out)["images"]
    assert images
    assert [image["frame"] for image in images] == list(range(len(images)))
    assert frames == ENDLESS or len(images) >= frames - 1  # FFmpeg shows a frame when the next one begins
    assert {image["path"] for image in images} == {"stream-127.0.0.1"}
    assert all(image["detections"] for image in images)
    assert json.loads((out / "detections.json").read_text())["images"] == images
    assert video.count_frames(out / "stream-127.0.0.1.mp4") == len(images)
    assert sorted(p.name for p in out.iterdir()) == ["detections.json", "stream-127.0.0.1.mp4"]


@pytest.mark.parametrize(("form", "results"), [("coco", "predictions.json"), ("yolo", "labels")])
def test_other_forms_are_kept_too(
    warm: Path, tmp_path: Path, camera: Callable[[int], Camera], form: str, results: str
) -> None:
    here, watched = tmp_path / "here", camera(6)
    running = _detect(
        "yolotrt", here, warm / "store", watched.address, "--format", form, "--out", "o", stderr=subprocess.PIPE
    )
    watched.wait_for_silence()
    ran = _ended(running, signal.SIGINT)
    assert ran.code == 0, ran.err
    frames = int(re.findall(r"(\d+) frames: ", ran.out)[0])
    assert frames >= 5
    names = {f"stream-127.0.0.1_{number}.txt" for number in range(frames)}
    if form == "coco":
        names = {f"stream-127.0.0.1:{number}" for number in range(frames)}
        assert {entry["image_id"] for entry in json.loads((here / "o" / results).read_text())} == names
    else:
        assert {path.name for path in (here / "o" / results).iterdir()} == names


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_without_a_frame_it_is_cancelled(
    warm: Path, tmp_path: Path, camera: Callable[[int], Camera], number: signal.Signals, code: int
) -> None:
    here, watched = tmp_path / "here", camera(0)
    running = _detect("yolotrt", here, warm / "store", watched.address, stderr=subprocess.PIPE)
    watched.wait_for_silence()
    ran = _ended(running, number)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.splitlines()[-1].startswith("cancelled")
    assert not list(here.rglob("*.*"))


def test_a_source_that_is_lost_is_an_error_with_results(
    warm: Path, tmp_path: Path, camera: Callable[[int], Camera]
) -> None:
    here, watched = tmp_path / "here", camera(10)
    arguments = (watched.address, "--json", "--reconnect", "1", "--out", "o")
    running = _detect("yolotrt", here, warm / "store", *arguments, stderr=subprocess.PIPE)
    watched.wait_for_silence()
    watched.process.kill()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 2
    words = r"the live source `http://\*\*\*@127\.0\.0\.1:\d+/live\?\*\*\*` was lost: no frame for \d s; "
    assert re.search(f"error: {words}the results include 10 frames of \\d s", " ".join(err.split())), err
    document = json.loads(out)
    assert len(document["images"]) == 10
    assert document["missing"][0]["frames"] is None
    assert json.loads((here / "o" / "detections.json").read_text()) == document
    assert video.count_frames(here / "o" / "stream-127.0.0.1.mp4") == 10
    assert "secret" not in out + err


def test_how_to_end_it_stays_in_sight(warm: Path, tmp_path: Path, camera: Callable[[int], Camera]) -> None:
    ours, theirs = pty.openpty()
    running = _detect("yolotrt", tmp_path / "here", warm / "store", camera(ENDLESS).address, stderr=theirs)
    os.close(theirs)
    shown = ""

    def read() -> bool:
        nonlocal shown
        shown += os.read(ours, 4096).decode(errors="replace")
        return re.search(r"stream-127\.0\.0\.1 frame \d+, Ctrl-C stops", shown) is not None

    _until(running, read)
    assert "detecting on http://***@127.0.0.1:" in shown
    assert "secret" not in shown
    assert "hidden" not in shown
    running.kill()
    running.communicate()
    os.close(ours)


def test_recordings_of_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    with detect._recording("rtsp://cam/1", tmp_path, new=True) as first:
        with detect._recording("rtsp://cam/2", tmp_path, new=True) as second:
            (second / "video.mp4").touch()
        assert (first.name, second.name) == ("stream-cam-now", "stream-cam-now-2")
    assert list(tmp_path.iterdir()) == [second], "nothing was recorded in the first"
    with detect._recording("rtsp://cam/1", tmp_path, new=False) as given:
        assert given == tmp_path
