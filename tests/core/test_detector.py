"""The detector around any session: batches, streams, and sessions that do everything themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_stages import FakePostprocessor, FakeSession
from yolotrt_core.detector import Detector
from yolotrt_core.errors import UsageError
from yolotrt_core.types import Detections, EngineSpec, ModelSpec, Selection, ShapeRange, TensorSpec


def _spec(batch: int | str = 2, profiles: tuple[ShapeRange, ...] = ()) -> EngineSpec:
    model = ModelSpec((TensorSpec("images", "float32", (batch, 3, 32, 64)),), (), ("thing",), (32,), "fake")
    return EngineSpec(model, "fp32", "fake", {}, profiles)


class _Counting(FakeSession):
    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(1.0, spec)
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.shapes.append(images.shape)
        return super().infer(images)


def _frames(*levels: int) -> list[NDArray[np.uint8]]:
    return [np.full((32, 64, 3), level, np.uint8) for level in levels]


def _scores(found: Iterable[Detections]) -> list[int]:
    return [round(float(d.scores[0]) * 255) for d in found]


def _detector(session: Any, stage: Any = None) -> Detector:
    holder: Any = SimpleNamespace(stage=stage or FakePostprocessor())
    return Detector(session, holder, None)


def test_a_static_engine_gets_full_batches() -> None:
    session = _Counting(_spec(2))
    found = _detector(session).detect(_frames(10, 20, 30))
    assert _scores(found) == [10, 20, 30]
    assert session.shapes == [(2, 3, 32, 64), (2, 3, 32, 64)]


def test_a_dynamic_engine_gets_what_there_is_up_to_its_largest_batch() -> None:
    session = _Counting(_spec("batch", (ShapeRange((1, 32, 32), (2, 32, 64), (4, 64, 64)),)))
    assert _scores(_detector(session).detect(_frames(1, 2, 3, 4, 5))) == [1, 2, 3, 4, 5]
    assert session.shapes == [(4, 3, 32, 64), (1, 3, 32, 64)]


def test_no_frames_are_no_detections() -> None:
    session = _Counting(_spec())
    assert _detector(session).detect([]) == []
    assert list(_detector(session).stream([])) == []
    assert session.shapes == []


def test_stream_keeps_order_and_passes_an_error_on_after_what_came_before() -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        yield from _frames(10, 20, 30)
        raise OSError("cable pulled")

    seen: list[int] = []
    with pytest.raises(OSError, match="cable pulled"):
        for found in _detector(_Counting(_spec(2))).stream(camera()):
            seen += _scores([found])
    assert seen == [10, 20, 30]


def test_a_class_that_the_model_does_not_have() -> None:
    detector = _detector(_Counting(_spec()))
    for call in (detector.detect, lambda f, s: list(detector.stream(f, s))):
        with pytest.raises(UsageError, match="class 1 does not exist: the model has classes 0 to 0"):
            call(_frames(1), Selection(classes=(1,)))


def test_a_session_that_detects_is_left_to_it() -> None:
    class Whole(FakeSession):
        def detect(self, frames: Sequence[NDArray[np.uint8]], program: Any, selection: Selection) -> list[Detections]:
            assert program == "program"
            return [
                Detections(np.zeros((1, 4), np.float32), np.array([f[0, 0, 0] / 255]), np.zeros(1, np.int64))
                for f in frames
            ]

        def stream(
            self, frames: Iterable[NDArray[np.uint8]], program: Any, selection: Selection
        ) -> Iterator[Detections]:
            for frame in frames:
                yield from self.detect([frame], program, selection)

        def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]:
            return [np.full(shape, 7, np.uint8)] * count

        def pinned_copy(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return frame.copy()

        def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
            raise AssertionError("the session detects by itself")

    class Device(FakePostprocessor):
        def device_program(self, spec: ModelSpec) -> str:
            return "program"

    detector = _detector(Whole(1.0, _spec()), Device())
    assert _scores(detector.detect(_frames(1, 2))) == [1, 2]
    assert _scores(detector.stream(_frames(3))) == [3]
    assert detector.frames == 3
    assert set(detector.seconds) == {"detect"}
    assert detector.pinned_frames(1, (2, 2, 3))[0].max() == 7
    assert _detector(_Counting(_spec())).pinned_frames(2, (4, 4, 3))[1].shape == (4, 4, 3)
