"""What a recorded graph holds, and when one is recorded, on the stand-in GPU; tests/gpu has CUDA's part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeCuda, FakeGraph
from fake_session import CHOSEN, PROGRAM, Opened, expected, same, sample_images
from kernel_emulation import Emulated

from yolotrt_core.errors import StageError
from yolotrt_core.types import Selection


def test_every_batch_is_described_to_the_kernels_as_it_is(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot, whose frames lie at one address, is told again whenever size, count or selection change."""
    opened = Opened(emulated, monkeypatch, in_flight=1)
    rng = np.random.default_rng(9)
    tall, wide = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(40, 20), (20, 40)])
    few = Selection(conf=0.05, max_det=2)
    with opened.session as session:
        for frames in ([tall], [wide], [wide], [tall, wide], [wide, tall], [tall]):
            wanted = expected(frames)
            same(session.detect(frames, PROGRAM, CHOSEN), wanted)
            assert [len(d) for d in session.detect(frames, PROGRAM, few)] == [min(2, len(w.scores)) for w in wanted]


def test_a_recording_that_fails_is_tried_again_and_given_up_in_the_end(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = sample_images(1)
    wanted = expected(frames)
    for failure in (StageError("CUDA graph: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"), FakeCuda.Error("capturing")):
        with Opened(emulated, monkeypatch, in_flight=1).session as session:
            monkeypatch.setattr(FakeGraph, "fails", failure)
            for _ in range(2):
                same(session.detect(frames, PROGRAM, CHOSEN), wanted)
            monkeypatch.setattr(FakeGraph, "fails", None)
            made, launched = FakeGraph.made, FakeGraph.launched
            for _ in range(4):
                same(session.detect(frames, PROGRAM, CHOSEN), wanted)
            assert (FakeGraph.made - made, FakeGraph.launched - launched) == (1, 4)
            assert not caplog.records
        with Opened(emulated, monkeypatch, in_flight=1).session as session:
            monkeypatch.setattr(FakeGraph, "fails", failure)
            for _ in range(5):
                same(session.detect(frames, PROGRAM, CHOSEN), wanted)
            assert session.graph == "none"
        assert [r.message for r in caplog.records] == [f"running without a CUDA graph: {failure}"]
        caplog.clear()
        monkeypatch.setattr(FakeGraph, "fails", None)


def test_nothing_is_recorded_while_a_slot_is_made(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = sample_images(1)
    wanted = expected(frames)
    opened = Opened(emulated, monkeypatch, in_flight=1)
    made = FakeGraph.made
    with opened.session as session:
        with opened.gpu.recording:
            for _ in range(5):
                same(session.detect(frames, PROGRAM, CHOSEN), wanted)
            assert FakeGraph.made == made
        for _ in range(3):
            same(session.detect(frames, PROGRAM, CHOSEN), wanted)
        assert FakeGraph.made == made + 1
        assert session.graph == "capture"
        held: list[bool] = []
        new_context = opened.plan.new_context

        def noted(**how: Any) -> Any:
            held.append(opened.gpu.recording.locked())
            return new_context(**how)

        monkeypatch.setattr(opened.plan, "new_context", noted)
        another = session._create_slot()
        with opened.gpu.current():
            another.close()
        assert held == [True]
        assert not opened.gpu.recording.locked()
