"""What interrupts, wants of memory and odd requests leave behind in a session: nothing. On the stand-in GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from kernel_emulation import Emulated
from stand_in import CHOSEN, PROGRAM, SIDE, Opened, expected, pictures, same
from test_jpegs import FakeLibrary

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.frames import Nv12Frame
from yolotrt_core.letterbox import preprocess
from yolotrt_core.types import Selection
from yolotrt_tensorrt import decoding, jpegs, lane


@pytest.fixture(params=[1, 3], ids=["one lane", "three lanes"])
def opened(emulated: Emulated, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Opened]:
    held = Opened(emulated, monkeypatch, in_flight=request.param)
    yield held
    held.session.close()
    assert held.cuda.live == 0


def once(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Interrupt the next call of something, as Ctrl-C may."""
    whole = getattr(owner, name)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        patch.setattr(owner, name, whole)
        raise KeyboardInterrupt

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (lane, "Inputs"),  # between the block that is written and the note of what it holds
        (decoding.Decoding, "_set_room"),
        (decoding.Decoding, "collect"),
        (decoding.Decoding, "_read"),
    ],
)
def test_an_interrupted_batch_leaves_a_session_that_is_right(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    frames = pictures(2)
    wanted = expected(frames)
    for _ in range(3):  # recorded from the second time on
        same(opened.session.detect(frames, PROGRAM, CHOSEN), wanted)
    once(monkeypatch, owner, name)
    with pytest.raises(KeyboardInterrupt):
        opened.session.detect(frames, PROGRAM, Selection(conf=0.9, max_det=5000, multi_label=True))
    for _ in range(3):
        same(opened.session.detect(frames, PROGRAM, CHOSEN), wanted)
    same(list(opened.session.stream(frames * 4, PROGRAM, CHOSEN)), wanted * 4)


@pytest.mark.parametrize("failure", [StageError("the engine does not run"), RuntimeError("odd")])
def test_no_error_is_its_own_cause(opened: Opened, failure: Exception) -> None:
    opened.plan.fails = failure
    requests: tuple[Callable[[], object], ...] = (
        lambda: opened.session.infer(preprocess(pictures(2), (SIDE, SIDE))[0]),
        lambda: opened.session.detect(pictures(2), PROGRAM, CHOSEN),
    )
    for request in requests:
        with pytest.raises(type(failure)) as raised:
            request()
        assert raised.value is failure
        assert raised.value.__cause__ is None
    opened.plan.fails = None


def test_a_stream_yields_what_came_before_a_frame_that_is_none(opened: Opened) -> None:
    frames = pictures(4)
    found = []
    with pytest.raises(UsageError, match="expected uint8"):
        for one in opened.session.stream([*frames, np.zeros((4, 4))], PROGRAM, CHOSEN):  # type: ignore[list-item]
            found.append(one)
    same(found, expected(frames))


def test_classes_may_be_a_list_and_change(opened: Opened) -> None:
    frames, classes = pictures(2), [0]
    chosen = Selection(conf=0.05, max_det=20, classes=classes)  # type: ignore[arg-type]
    for classes[0] in (0, 2, 1):
        ids = {int(i) for found in opened.session.detect(frames, PROGRAM, chosen) for i in found.class_ids}
        assert ids == {classes[0]}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("most", [10**6, 2**31, 10**30])
def test_more_detections_than_can_be_take_no_memory(opened: Opened, most: int, multi_label: bool) -> None:
    frames = pictures(2)
    few = Selection(conf=0.001, max_det=1000, multi_label=multi_label)
    wanted = opened.session.detect(frames, PROGRAM, few)
    live = opened.cuda.live
    same(opened.session.detect(frames, PROGRAM, Selection(conf=0.001, max_det=most, multi_label=multi_label)), wanted)
    assert opened.cuda.live - live < 1 << 20


def test_idle_memory_goes_before_anything_fails(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs.nvjpeg, "load", FakeLibrary)
    monkeypatch.setattr(jpegs, "_urgent_stream", lambda: None)  # the real driver's
    session = opened.session
    assert session.decodes_files
    opened.cuda.limit = opened.cuda.live + (12 << 20)
    for side in range(600, 1500, 100):  # 1 to 6 MB each, and nobody keeps any
        content = cv2.imencode(".jpg", np.full((side, side, 3), 9, np.uint8))[1].tobytes()
        (picture,) = session.decode([content])
        assert picture is not None
        del picture
    wide, wider = (Nv12Frame(np.zeros((3000, width), np.uint8)) for width in (3000, 6000))  # uploaded whole
    with pytest.raises(StageError, match="out of GPU memory"):
        session.detect([wider], PROGRAM, CHOSEN)
    assert len(session.detect([wide], PROGRAM, CHOSEN)) == 1, "what idle pictures had was freed"


def test_a_closed_session_has_no_graph(opened: Opened) -> None:
    opened.session.close()
    assert opened.session.graph == "none"
