"""A run of detections that is asked to end before it has begun; tests/cli ends them in the middle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fake_stages import fake_plugin
from yolotrt_core.api import Detector
from yolotrt_core.console.progress import progress
from yolotrt_core.console.signals import Interrupt
from yolotrt_core.detection.output_names import Names
from yolotrt_core.detection.run import DetectionRun
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
