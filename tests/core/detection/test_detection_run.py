"""A run that is asked to end before it has begun, one that never ends, and several in one folder."""

from __future__ import annotations

import contextlib
import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fake_stages import fake_plugin
from yolotrt_core.api import Detector
from yolotrt_core.console.progress import progress
from yolotrt_core.console.signals import Interrupt
from yolotrt_core.detection import run as run_module
from yolotrt_core.detection.output_names import Format, Names
from yolotrt_core.detection.run import DetectionRun
from yolotrt_core.errors import UsageError
from yolotrt_core.media.video_decoder import VideoFrame
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.types import Selection


@pytest.mark.parametrize("name", ["video.avi", "still.png"])
def test_before_the_first_frame_nothing_is_left(name: str, store: Store, tmp_path: Path) -> None:
    weights = tmp_path / "model.txt"
    weights.write_text("2 3")
    frame = np.full((32, 64, 3), 51, np.uint8)
    source, out = tmp_path / name, tmp_path / "out"
    if source.suffix == ".avi":
        writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 32))
        for _ in range(20):
            writer.write(frame)
        writer.release()
    else:
        assert cv2.imwrite(str(source), frame)
    registry = Registry.of(fake_plugin())
    with Detector.open(weights, store=store, registry=registry, imgsz=(32, 64)) as detector, progress("") as bar:
        for asked in (True, False):
            run = DetectionRun(detector, Selection(), "json", Names([source], out, "json"))
            interrupt = Interrupt()
            if asked:
                interrupt.request()
            if source.suffix == ".avi":
                run.video(source, bar, interrupt)
            else:
                run.stills([source], bar, interrupt)
            run.finish()
            assert run.unread == []
            assert len(run.summaries) == (0 if asked else 1)
            written = [p.name for p in out.rglob("*")] if out.exists() else []
            assert bool(written) != asked


@pytest.fixture
def detector(store: Store, tmp_path: Path) -> Iterator[Detector]:
    weights = tmp_path / "model.txt"
    weights.write_text("2 3")
    with Detector.open(weights, store=store, registry=Registry.of(fake_plugin()), imgsz=(32, 64)) as opened:
        yield opened


def _live_frames(monkeypatch: pytest.MonkeyPatch, frames: Iterator[NDArray[np.uint8]]) -> None:
    class Endless:
        fps, skipped, reconnected, lost = 25.0, 0, 0, None

        def __iter__(self) -> Iterator[VideoFrame]:
            return (VideoFrame(frame, number / 25) for number, frame in enumerate(frames))

    @contextlib.contextmanager
    def opened(source: str, interrupt: Interrupt, **_: object) -> Iterator[Endless]:
        yield Endless()

    monkeypatch.setattr(run_module, "open_live", opened)


def _entries(partial: str) -> list[Any]:
    """Read a partial file as documented: each line that begins with a brace, without its comma."""
    lines = (line.strip().removesuffix(",") for line in partial.splitlines()[1:])
    return [json.loads(line) for line in lines if line.startswith("{")]


def _frame_of(entry: Any) -> int:
    return int(entry["image_id"].removeprefix("camera-0:")) if "image_id" in entry else int(entry["frame"])


@pytest.mark.parametrize("form", ["json", "jsonl", "coco"])
def test_an_endless_run_needs_no_more_memory_and_loses_nothing(
    form: Format, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, measured = 50, (100, 1100)
    traced: list[int] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for number in range(measured[1] + 1):
            if number == looked:  # every frame before is on disk
                (file,) = (tmp_path / "out").glob("*.partial")
                content = "[\n" + file.read_text() if form == "jsonl" else file.read_text()
                assert [_frame_of(entry) for entry in _entries(content)] == list(range(looked))
            if number in measured:
                gc.collect()
                traced.append(tracemalloc.get_traced_memory()[0])
            yield np.full((32, 64, 3), 51, np.uint8)

    _live_frames(monkeypatch, frames())
    tracemalloc.start()
    try:
        with (
            progress("") as bar,
            DetectionRun(
                detector, Selection(), form, Names(["camera:0"], tmp_path / "out", form), annotate=False
            ) as run,
        ):
            run.live("camera:0", bar, Interrupt())
            run.finish()
    finally:
        tracemalloc.stop()
    assert traced[1] - traced[0] < 2 * (measured[1] - measured[0])  # bytes; an entry has some hundreds
    (file,) = (tmp_path / "out").iterdir()
    text = file.read_text()
    found = [json.loads(line) for line in text.splitlines()] if form == "jsonl" else json.loads(text)
    entries = found["images"] if form == "json" else found
    assert [_frame_of(entry) for entry in entries] == list(range(measured[1] + 1))


def test_runs_in_one_folder_keep_their_results_apart(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    killed = out / "detections.json.partial"
    killed.write_text("of a run that was killed")
    sources = [tmp_path / f"{number}.png" for number in range(3)]
    for source in sources:
        assert cv2.imwrite(str(source), np.full((32, 64, 3), 51, np.uint8))

    def run(source: Path) -> DetectionRun:
        begun = DetectionRun(detector, Selection(), "json", Names([source], out, "json"), annotate=False)
        with progress("") as bar:
            begun.stills([source], bar, Interrupt())
        return begun

    with run(sources[0]) as one, run(sources[1]) as other:
        expected = f"kept `{killed}`: results of a run that did not end, or has not ended yet"
        assert caplog.messages[-2:] == [expected, expected.replace("`:", "` and 1 more:")]
        for ending, path in ((one, sources[0]), (other, sources[1])):
            ending.finish()
            assert [i["path"] for i in json.loads((out / "detections.json").read_text())["images"]] == [str(path)]
    with pytest.raises(ZeroDivisionError), run(sources[2]):
        raise ZeroDivisionError
    left = out / "detections-2.json.partial"
    assert caplog.messages[-1] == f"stopped before the end: the results so far are in `{left}`"
    assert [entry["path"] for entry in _entries(left.read_text())] == [str(sources[2])]
    assert killed.read_text() == "of a run that was killed"
    assert len(list(out.iterdir())) == 3


def test_an_unreadable_file_does_not_stay_in_memory(detector: Detector, tmp_path: Path) -> None:
    broken = tmp_path / "x.jpg"
    broken.write_bytes(b"nothing")
    run = DetectionRun(detector, Selection(), "json", Names([broken], tmp_path / "out", "json"))
    with progress("") as bar:
        run.stills([broken], bar, Interrupt())
    (error,) = run.unread
    assert (type(error), error.__traceback__, error.__context__) == (UsageError, None, None)
    with pytest.raises(UsageError, match=r"x\.jpg"):
        run.refuse_unread()
