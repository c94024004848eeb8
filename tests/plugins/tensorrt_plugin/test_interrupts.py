"""What interrupts, wants of memory and odd requests leave behind in a session: nothing. On the stand-in GPU."""

from __future__ import annotations

import dis
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import CodeType, FrameType
from typing import Any

import cv2
import numpy as np
import pytest
from fake_session import CHOSEN, PROGRAM, SIDE, Opened, expected, network, same, sample_images
from kernel_emulation import Emulated
from test_jpeg_decoder import FakeLibrary

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.media.frames import Nv12Frame
from yolotrt_core.types import Selection
from yolotrt_tensorrt.runtime import jpeg_decoder, postprocess, session, slot, slot_pool


@pytest.fixture(params=[1, 3], ids=["one slot", "three slots"])
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
        (slot, "Inputs"),  # between the block that is written and the note of what it holds
        (postprocess.Decoding, "_set_room"),
        (postprocess.Decoding, "collect"),
        (postprocess.Decoding, "_read"),
    ],
)
def test_an_interrupted_batch_leaves_a_session_that_is_right(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    frames = sample_images(2)
    wanted = expected(frames)
    for _ in range(3):  # recorded from the second time on
        same(opened.session.detect(frames, PROGRAM, CHOSEN), wanted)
    once(monkeypatch, owner, name)
    with pytest.raises(KeyboardInterrupt):
        opened.session.detect(frames, PROGRAM, Selection(conf=0.9, max_det=5000, multi_label=True))
    for _ in range(3):
        same(opened.session.detect(frames, PROGRAM, CHOSEN), wanted)
    same(list(opened.session.stream(frames * 4, PROGRAM, CHOSEN)), wanted * 4)


@functools.cache
def _breaks(code: CodeType) -> frozenset[int]:
    """Return where CPython looks for an interrupt in a function: as it begins, after calls, where a loop goes on."""
    found = set()
    for before, here in itertools.pairwise(dis.get_instructions(code)):
        if before.opname.startswith(("CALL", "RESUME")) or here.opname.startswith("JUMP_BACKWARD"):
            found.add(here.offset)
    return frozenset(found)


def interrupted(work: Callable[[], object], at: int) -> bool:
    """Do work whose part in the session is interrupted at its `at`th occasion; False if there are fewer."""
    files, left = {slot_pool.__file__, session.__file__}, at

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _breaks(frame.f_code):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("method", ["detect", "infer"])
def test_an_interrupt_anywhere_in_a_request_loses_no_slot(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(postprocess, "_FIRST_CAPACITY", 64)
    session, frames = opened.session, sample_images(2)
    wanted = expected(frames)
    images = preprocess(frames, (SIDE, SIDE))[0]
    requests: dict[str, Callable[[], object]] = {
        "detect": lambda: session.detect(frames, PROGRAM, CHOSEN),
        "infer": lambda: session.infer(images),
    }
    at = 0
    with ThreadPoolExecutor(1) as pool:
        while interrupted(requests[method], at):
            raw = pool.submit(session.infer, images).result(10)
            np.testing.assert_array_equal(raw["output0"], network(images))
            at += 1
        same(pool.submit(session.detect, frames, PROGRAM, CHOSEN).result(10), wanted)
    assert at > 10, "there were occasions"
    assert len(session._slots._slots) <= session._slots.capacity
    # Batches that nobody asked for are in flight until their slot is needed.
    assert all(isinstance(owner, slot_pool.BatchHandle) for owner in session._slots._owners.values())


def test_an_interrupt_while_a_slot_is_made_loses_none(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session of two, of which another thread has the first."""
    images = preprocess(sample_images(2), (SIDE, SIDE))[0]
    at, going_on = 0, True
    while going_on:
        opened = Opened(emulated, monkeypatch, in_flight=2)
        session, other = opened.session, slot_pool.SlotLease()
        session._slots.acquire(session._create_slot, other)
        going_on = interrupted(functools.partial(session.infer, images), at)
        session._slots.release(other)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(session.infer, images) for _ in range(4)]:
                np.testing.assert_array_equal(done.result(10)["output0"], network(images))
        session.close()
        assert opened.cuda.live == 0
        at += 1
    assert at > 10


def test_memory_of_a_batch_that_still_runs_is_kept(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_pool, "_TIMEOUT", 0.05)
    held = slot_pool.SlotLease()
    opened.session._slots.acquire(opened.session._create_slot, held)
    opened.session.close()
    assert not opened.plan.closed
    opened.session._slots.release(held)


def test_memory_that_the_host_cannot_lock_is_not_told_as_the_gpus(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int, dtype: Any) -> Any:
        raise opened.cuda.MemoryError("cuMemHostAlloc failed: out of memory")

    frames = sample_images(2)
    with monkeypatch.context() as patch:
        patch.setattr(opened.cuda, "pagelocked_empty", refuse)
        with pytest.raises(StageError, match=r"cannot allocate 0\.2 MiB of page-locked host memory: cuMem") as told:
            opened.session.detect(frames, PROGRAM, CHOSEN)
        assert "GPU memory" not in f"{told.value} {told.value.hint}"
    del told  # its traceback holds what was half made
    same(opened.session.detect(frames, PROGRAM, CHOSEN), expected(frames))


def test_a_pinned_copy_is_of_the_kind_it_was_made_from(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (36, 40), np.uint8)
    copy = opened.session.pinned_copy(Nv12Frame(planes))
    assert isinstance(copy, Nv12Frame)
    assert not np.may_share_memory(copy.planes, planes)
    wanted = opened.session.detect([Nv12Frame(planes)], PROGRAM, CHOSEN)
    planes[:] = 0
    for ours, theirs in zip(opened.session.detect([copy], PROGRAM, CHOSEN), wanted, strict=True):
        assert len(ours)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    monkeypatch.setattr(jpeg_decoder.nvjpeg, "load", FakeLibrary)
    monkeypatch.setattr(jpeg_decoder, "_urgent_stream", lambda: None)  # the real driver's
    (on_device,) = opened.session.decode([cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()])
    assert on_device is not None
    assert opened.session.pinned_copy(on_device) is on_device
    with pytest.raises(UsageError, match="expected uint8"):
        opened.session.pinned_copy(planes)


@pytest.mark.parametrize("failure", [StageError("the engine does not run"), RuntimeError("odd")])
def test_no_error_is_its_own_cause(opened: Opened, failure: Exception) -> None:
    opened.plan.fails = failure
    requests: tuple[Callable[[], object], ...] = (
        lambda: opened.session.infer(preprocess(sample_images(2), (SIDE, SIDE))[0]),
        lambda: opened.session.detect(sample_images(2), PROGRAM, CHOSEN),
    )
    for request in requests:
        with pytest.raises(type(failure)) as raised:
            request()
        assert raised.value is failure
        assert raised.value.__cause__ is None
    opened.plan.fails = None


def test_a_stream_yields_what_came_before_a_frame_that_is_none(opened: Opened) -> None:
    frames = sample_images(4)
    found = []
    with pytest.raises(UsageError, match="frame 4: expected uint8"):
        for one in opened.session.stream([*frames, np.zeros((4, 4))], PROGRAM, CHOSEN):  # type: ignore[list-item]
            found.append(one)
    same(found, expected(frames))


def test_classes_may_be_a_list_and_change(opened: Opened) -> None:
    frames, classes = sample_images(2), [0]
    chosen = Selection(conf=0.05, max_det=20, classes=classes)  # type: ignore[arg-type]
    for classes[0] in (0, 2, 1):
        ids = {int(i) for found in opened.session.detect(frames, PROGRAM, chosen) for i in found.class_ids}
        assert ids == {classes[0]}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("most", [10**6, 2**31, 10**30])
def test_more_detections_than_can_be_take_no_memory(opened: Opened, most: int, multi_label: bool) -> None:
    frames = sample_images(2)
    few = Selection(conf=0.001, max_det=1000, multi_label=multi_label)
    wanted = opened.session.detect(frames, PROGRAM, few)
    live = opened.cuda.live
    same(opened.session.detect(frames, PROGRAM, Selection(conf=0.001, max_det=most, multi_label=multi_label)), wanted)
    assert opened.cuda.live - live < 1 << 20


def test_idle_memory_goes_before_anything_fails(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_decoder.nvjpeg, "load", FakeLibrary)
    monkeypatch.setattr(jpeg_decoder, "_urgent_stream", lambda: None)  # the real driver's
    session = opened.session
    assert session.decodes_files
    opened.cuda.limit = opened.cuda.live + (12 << 20)
    for side in range(600, 1500, 100):  # 1 to 6 MB each, and nobody keeps any
        content = cv2.imencode(".jpg", np.full((side, side, 3), 9, np.uint8))[1].tobytes()
        (image,) = session.decode([content])
        assert image is not None
        del image
    wide, wider = (Nv12Frame(np.zeros((3000, width), np.uint8)) for width in (3000, 6000))  # uploaded whole
    with pytest.raises(StageError, match="out of GPU memory"):
        session.detect([wider], PROGRAM, CHOSEN)
    assert len(session.detect([wide], PROGRAM, CHOSEN)) == 1, "what idle images had was freed"


def test_a_closed_session_has_no_graph(opened: Opened) -> None:
    opened.session.close()
    assert opened.session.graph == "none"
