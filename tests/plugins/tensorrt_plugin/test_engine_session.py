"""The session's host code on a stand-in GPU: pipelining, threads, errors, memory. CUDA's part is in tests/gpu."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_gpu import FakeCuda
from fake_session import CHOSEN, CLASSES, PROGRAM, SIDE, Opened, expected, network, same, sample_images
from kernel_emulation import Emulated, compiled

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.media.frames import Nv12Frame
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import DeviceProgram, Session
from yolotrt_core.types import Detections, TensorSpec
from yolotrt_tensorrt.runtime import session
from yolotrt_tensorrt.runtime.loaded_engine import Tensor
from yolotrt_tensorrt.runtime.postprocess import Decoding


@pytest.fixture(params=[True, False], ids=["recorded", "launched one by one"])
def opened(emulated: Emulated, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Opened]:
    held = Opened(emulated, monkeypatch, recorded=request.param)
    assert held.session.graph == ("capture" if request.param else "none")
    yield held
    held.session.close()
    assert held.cuda.live == 0
    assert getattr(held.cuda.current, "depth", 0) == 0


def test_it_is_a_session_that_detects(opened: Opened) -> None:
    held: Session = opened.session
    assert held.detects


@pytest.mark.parametrize("channels", [1, 4])
def test_an_engine_of_other_channels_infers_and_leaves_frames_to_the_cpu(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    held = Opened(emulated, monkeypatch, channels=channels)
    with held.session as opened:
        assert not opened.detects
        images = np.random.default_rng(0).random((2, channels, SIDE, SIDE), np.float32)
        np.testing.assert_array_equal(opened.infer(images)["output0"], network(images))
        with pytest.raises(UsageError, match=f"three channels, but the engine's input has {channels}"):
            opened.detect(sample_images(1), PROGRAM, CHOSEN)
        with pytest.raises(UsageError, match=f"float32 images of \\(B, {channels}, H, W\\)"):
            opened.infer(images[0])


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_frames_gives_what_the_cpu_path_gives(opened: Opened, count: int) -> None:
    frames = sample_images(count)
    wanted = expected(frames) if frames else []
    assert not frames or any(len(w.scores) for w in wanted)
    same(opened.session.detect(frames, PROGRAM, CHOSEN), wanted)


def test_the_engine_computes_on_streams_of_the_slots_own(opened: Opened) -> None:
    """Streams that TensorRT makes itself are blocking ones, see `FakeCuda.Stream`."""
    opened.session.detect(sample_images(9), PROGRAM, CHOSEN)
    handles = [handle for context in opened.plan.made for handle in context.aux]
    assert len(opened.plan.made) > 1
    assert len(set(handles)) == len(handles) == 2 * len(opened.plan.made)


def test_kernels_are_loaded_once_however_many_threads_ask(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loads = session.load_kernels, []

    def slowly(*given: Any, **named: Any) -> Any:
        loads.append(given)
        time.sleep(0.05)
        return load(*given, **named)

    monkeypatch.setattr(session, "load_kernels", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: opened.session.detect(sample_images(1, seed), PROGRAM, CHOSEN), range(4)))
    assert len(loads) == 1


def test_pinned_frames_are_filled_in_place_and_strided_ones_copied(opened: Opened) -> None:
    (frame,) = opened.session.pinned_frames(1, (40, 30, 3))
    frame[:] = sample_images(1)[0][0, 0]
    strided = sample_images(1, seed=4)[0][::-1, ::2]
    same(opened.session.detect([frame, strided], PROGRAM, CHOSEN), expected([frame, strided.copy()]))


@pytest.mark.parametrize("size", [(96, 128), (54, 96), (192, 192), (200, 150), (77, 301), (64, 64), (500, 33)])
def test_big_frames_travel_without_the_rows_nobody_reads(opened: Opened, size: tuple[int, int]) -> None:
    """From pageable and pinned memory, and strided; scales that are whole, halves, odd, and exactly two."""
    rng = np.random.default_rng(6)
    frame = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    strided = np.repeat(frame, 2, axis=1)[:, ::2]
    (wanted,) = expected([frame])
    for source in (frame, opened.session.pinned_copy(frame), strided):
        same(opened.session.detect([source, source], PROGRAM, CHOSEN), [wanted, wanted])


def test_pinned_memory_is_lent_again_only_when_nobody_holds_it(opened: Opened) -> None:
    session, frames = opened.session, sample_images(4)
    wanted = expected(frames)
    for frame in frames:
        copy = session.pinned_copy(frame)
        np.testing.assert_array_equal(copy, frame)
        same(session.detect([copy, frame], PROGRAM, CHOSEN), expected([frame, frame]))
    del copy
    before = opened.cuda.pinned
    found = list(session.stream((session.pinned_copy(f) for f in frames * 5), PROGRAM, CHOSEN))
    same(found, wanted * 5)
    # Two in each of three slots, and the two that are gathered.
    assert opened.cuda.pinned - before <= 8
    held = session.pinned_copy(frames[0])
    session.close()
    np.testing.assert_array_equal(held, frames[0])
    del held
    assert opened.cuda.pinned == 0


def test_nv12_is_what_is_said_to_be_it(opened: Opened) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (36, 40), np.uint8)
    wanted = expected([cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)])
    same(opened.session.detect([Nv12Frame(planes)], PROGRAM, CHOSEN), wanted)
    pinned = opened.session.pinned_frames(1, planes.shape)[0]
    pinned[:] = planes
    same(list(opened.session.stream([Nv12Frame(pinned)], PROGRAM, CHOSEN)), wanted)
    with pytest.raises(
        UsageError, match=r"frame 0: expected uint8 \(H, W, 3\) in BGR, found uint8 \(36, 40\)"
    ) as caught:
        opened.session.detect([planes], PROGRAM, CHOSEN)  # grey, or NV12
    assert "`Nv12Frame`" in str(caught.value.hint)


def test_infer_gives_the_raw_output(opened: Opened) -> None:
    images, _ = preprocess(sample_images(2), (SIDE, SIDE))
    np.testing.assert_array_equal(opened.session.infer(images)["output0"], network(images))


def test_classes_are_found_in_the_central_square(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(emulated, monkeypatch)
    opened.plan.outputs = {"output0": Tensor("output0", "float32", (2, CLASSES))}
    opened.plan.network = lambda images: 5 * images.mean((2, 3))  # the mean of each channel is the logit of a class
    outputs = (TensorSpec("output0", "float32", (2, CLASSES)),)
    model = replace(opened.session.spec.model, outputs=outputs, head="yolov5_cls", task="classify")
    opened.session.spec = replace(opened.session.spec, model=model)
    decoding = Registry.discover().postprocessor("yolov5_cls")
    frames = sample_images(5)
    with Detector(opened.session, decoding, decoding.stage.Options()) as detector:
        assert detector.program is None and not detector.decodes_files
        for found in (detector.detect(frames), list(detector.stream(frames))):
            for frame, one in zip(frames, found, strict=True):
                side = min(frame.shape[:2])
                top, left = ((length - side) // 2 for length in frame.shape[:2])
                resized = cv2.resize(frame[top : top + side, left : left + side], (SIDE, SIDE))
                powers = np.exp(5 * resized[..., ::-1].mean((0, 1)) / 255)
                assert one.classes is not None
                np.testing.assert_allclose(one.classes.scores, powers / powers.sum(), rtol=1e-4)


def test_wrong_input_is_refused_in_words(opened: Opened) -> None:
    with pytest.raises(UsageError, match=r"accepts images of \(2, 3, 32, 32\), found \(1, 3, 32, 32\)"):
        opened.session.infer(np.zeros((1, 3, SIDE, SIDE), np.float32))
    with pytest.raises(UsageError, match="expected float32 images"):
        opened.session.infer(np.zeros((2, 3, SIDE, SIDE)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="frame 1: expected uint8"):
        opened.session.detect([sample_images(1)[0], np.zeros((4, 4))], PROGRAM, CHOSEN)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="expected an output `other`"):
        opened.session.detect(sample_images(1), DeviceProgram("other", CLASSES, ""), CHOSEN)


def test_a_stream_yields_what_came_before_its_failure(opened: Opened) -> None:
    frames = sample_images(3)

    def broken() -> Iterator[np.ndarray]:
        yield from frames
        raise OSError("the camera was unplugged")

    found = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(opened.session.stream(broken(), PROGRAM, CHOSEN))
        found.append(None)
    found = []
    try:
        for one in opened.session.stream(broken(), PROGRAM, CHOSEN):
            found.append(one)
    except OSError:
        pass
    same(found, expected(frames))


def test_detecting_inside_a_stream_and_two_streams_at_once_do_not_block(opened: Opened) -> None:
    frames = sample_images(7)
    wanted = expected(frames)
    session = opened.session
    streams = (session.stream(frames, PROGRAM, CHOSEN), session.stream(frames, PROGRAM, CHOSEN))
    for index, (a, b) in enumerate(zip(*streams, strict=True)):
        same([a, b], [wanted[index]] * 2)
        same(session.detect(frames[:1], PROGRAM, CHOSEN), wanted[:1])


def test_eight_threads_share_one_session(opened: Opened) -> None:
    sets = [sample_images(3, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda frames: opened.session.detect(frames, PROGRAM, CHOSEN), sets))
    for frames, ours in zip(sets, found, strict=True):
        same(ours, expected(frames))


@pytest.mark.parametrize("method", ["infer", "detect", "time_steps", "time_engine"])
def test_a_failing_request_reaches_its_caller_and_leaves_the_rest_working(opened: Opened, method: str) -> None:
    session, frames = opened.session, sample_images(2)
    requests: dict[str, Callable[[], object]] = {
        "infer": lambda: session.infer(preprocess(frames, (SIDE, SIDE))[0]),
        "detect": lambda: session.detect(frames, PROGRAM, CHOSEN),
        "time_steps": lambda: session.time_steps(frames, PROGRAM, CHOSEN),
        "time_engine": lambda: session.time_engine(2, 5),
    }
    opened.plan.fails = FakeCuda.Error("an illegal memory access was encountered")
    type(opened.plan.fails).__module__ = "pycuda._driver"
    with pytest.raises(StageError, match="CUDA error: an illegal"):
        requests[method]()
    opened.plan.fails = None
    same(session.detect(frames, PROGRAM, CHOSEN), expected(frames))


def test_a_gpu_that_is_full_when_boxes_are_fetched_says_so(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[Detections]:
        raise MemoryError

    frames = sample_images(2)
    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "collect", refuse)
        with pytest.raises(StageError, match="out of GPU memory on Fake GPU: a batch of 2 needs"):
            opened.session.detect(frames, PROGRAM, CHOSEN)
    same(opened.session.detect(frames, PROGRAM, CHOSEN), expected(frames))


def test_closing_waits_for_a_thread_that_infers(opened: Opened) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(images: np.ndarray) -> np.ndarray:
        inside.set()
        assert leave.wait(10)
        return network(images)

    opened.plan.network = slow
    images, _ = preprocess(sample_images(2), (SIDE, SIDE))
    with ThreadPoolExecutor(2) as pool:
        inferring = pool.submit(opened.session.infer, images)
        assert inside.wait(10)
        closing = pool.submit(opened.session.close)
        while not opened.session._closed:
            time.sleep(0.001)
        time.sleep(0.05)
        assert not closing.done()
        leave.set()
        np.testing.assert_array_equal(inferring.result(10)["output0"], network(images))
        closing.result(10)


def test_a_full_gpu_names_the_batch_that_fits(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(emulated, monkeypatch, batch=32)
    opened.cuda.limit = opened.cuda.live + (3 << 20)
    with pytest.raises(StageError, match=r"out of GPU memory on Fake GPU: a batch of 32 needs") as refused:
        opened.session.detect(sample_images(32), PROGRAM, CHOSEN)
    assert refused.value.hint is not None
    assert "would fit" in refused.value.hint
    fits = int(refused.value.hint.split("batch of ")[1].split(" ")[0])
    assert 1 <= fits <= 3
    opened.cuda.limit = 1 << 40
    frames = sample_images(3)
    same(opened.session.detect(frames, PROGRAM, CHOSEN), expected(frames))
    opened.session.close()


def test_a_dynamic_engine_runs_each_batch_at_its_own_size(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(emulated, monkeypatch, batch=-1)
    frames = sample_images(6)
    same(opened.session.detect(frames, PROGRAM, CHOSEN), expected(frames))
    for count in (1, 3):
        images, _ = preprocess(frames[:count], (SIDE, SIDE))
        assert opened.session.infer(images)["output0"].shape[0] == count
    with pytest.raises(UsageError, match=r"accepts images of \(1, 3, 32, 32\) to \(4, 3, 32, 32\)"):
        opened.session.infer(np.zeros((5, 3, SIDE, SIDE), np.float32))
    opened.session.close()
    assert opened.cuda.live == 0


@pytest.mark.parametrize("batch", [2, -1])
def test_an_engine_with_channels_last_gives_the_same_boxes(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(compiled("float32", tmp_path, "nhwc"), monkeypatch, batch, "nhwc")
    frames = sample_images(5)
    same(opened.session.detect(frames, PROGRAM, CHOSEN), expected(frames))
    images, _ = preprocess(frames[:2], (SIDE, SIDE), layout="nhwc")
    np.testing.assert_array_equal(opened.session.infer(images)["output0"], network(images))
    with pytest.raises(UsageError, match=r"found \(2, 3, 32, 32\)"):
        opened.session.infer(np.zeros((2, 3, SIDE, SIDE), np.float32))
    with pytest.raises(UsageError, match=r"expected float32 images of \(B, H, W, 3\)"):
        opened.session.infer(images[0])
    opened.session.close()
    assert opened.cuda.live == 0


def test_memory_is_flat_and_the_jit_cache_kept_once(opened: Opened) -> None:
    frames = sample_images(2)
    opened.session.detect(frames * 2, PROGRAM, CHOSEN)
    before, saved = opened.cuda.live, opened.plan.saved
    for _ in range(20):
        opened.session.detect(frames, PROGRAM, CHOSEN)
    assert opened.cuda.live == before
    assert opened.plan.saved == saved == 1


def test_no_thread_is_left_and_a_closed_session_says_so(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    opened = Opened(emulated, monkeypatch)
    with opened.session as session:
        session.detect(sample_images(2), PROGRAM, CHOSEN)
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="closed"):
        session.detect(sample_images(1), PROGRAM, CHOSEN)


def test_a_closed_session_goes_with_its_last_holder(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to the garbage collector, its events would be freed on any thread, where pycuda cannot."""
    opened = Opened(emulated, monkeypatch)
    opened.session.detect(sample_images(5), PROGRAM, CHOSEN)
    opened.session.close()
    gone = weakref.ref(opened.session)
    gc.disable()
    try:
        del opened.session
        assert gone() is None
    finally:
        gc.enable()
