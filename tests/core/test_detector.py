"""The detector around any session: batches, streams, and sessions that do everything themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fake_stages import FakePostprocessor, FakeSession
from yolotrt_core.errors import UsageError
from yolotrt_core.inference.detector import Detector
from yolotrt_core.media.frames import Nv12Frame
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


def test_files_and_what_is_wrong_with_them_come_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(8)]
    for index in (1, 4, 5):
        cv2.imwrite(str(paths[index]), _frames(10 * index)[0])
    paths[6].write_bytes(b"no image")
    for batch in (1, 2, 8):
        found = list(_detector(_Counting(_spec(batch))).detect_files(paths))
        assert len(found) == 8
        for index, (one, path) in enumerate(zip(found, paths, strict=True)):
            if index in (1, 4, 5):
                assert _scores([one] if isinstance(one, Detections) else []) == [10 * index]
            else:
                assert isinstance(one, UsageError)
                assert f"`{path}`" in str(one)
    assert list(_detector(_Counting(_spec())).detect_files([])) == []


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
    with pytest.raises(UsageError, match=r"frame 1: expected .* found NoneType"):
        detector.detect([*_frames(1), None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="`conf` is a number from 0 to 1"):
        detector.detect(_frames(1), Selection(conf=2))
    assert _detector(_Counting(_spec())).pinned_frames(2, (4, 4, 3))[1].shape == (4, 4, 3)


def test_nv12_is_taken_where_it_is_said() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    frame = Nv12Frame(planes)
    assert frame.shape == (32, 64, 3)
    detector = _detector(_Counting(_spec(2)))
    expected = detector.detect([cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)])
    assert _scores(detector.detect([frame])) == _scores(expected) == _scores(detector.stream([frame]))
    with pytest.raises(UsageError, match=r"found uint8 \(48, 64\)") as caught:
        detector.detect([planes])
    assert "`Nv12Frame`" in str(caught.value.hint)


@pytest.mark.parametrize(
    "planes", [np.zeros(s, np.uint8) for s in ((49, 64), (48, 63), (48, 64, 3), (0, 64))] + [np.zeros((48, 64)), None]
)
def test_what_cannot_be_nv12(planes: Any) -> None:
    with pytest.raises(UsageError, match=r"expected NV12 as uint8 \(H \* 3 / 2, W\) with even H and W, found"):
        Nv12Frame(planes)


@pytest.mark.parametrize(
    ("frame", "found", "hint"),
    [
        (None, "NoneType", "`cv2.imread` returns None for a file it cannot read"),
        ("a.jpg", "str", None),
        (np.zeros((32, 64, 3), np.float32), r"float32 \(32, 64, 3\)", None),
        (np.zeros((32, 64, 4), np.uint8), r"uint8 \(32, 64, 4\)", None),
        (np.zeros((32, 64), np.uint8), r"uint8 \(32, 64\)", "one image goes into a list"),
        (np.zeros((0, 64, 3), np.uint8), r"uint8 \(0, 64, 3\)", None),
    ],
)
def test_what_is_no_frame_is_named(frame: Any, found: str, hint: str | None) -> None:
    words = rf"^frame 1: expected uint8 \(H, W, 3\) in BGR, found {found}$"
    detector = _detector(_Counting(_spec(2)))
    with pytest.raises(UsageError, match=words) as caught:
        detector.detect([*_frames(1), frame])
    assert (caught.value.hint or "").startswith(hint or "")
    assert bool(caught.value.hint) == bool(hint)
    seen: list[int] = []
    with pytest.raises(UsageError, match=words):
        for each in detector.stream([*_frames(9), frame]):
            seen += _scores([each])
    assert seen == [9]  # what came before it is answered, also within one batch
    with pytest.raises(UsageError, match=words.replace("frame 1", "frame 0")):
        detector.detect_at(frame, (32, 64))


def test_one_image_that_is_not_in_a_list() -> None:
    with pytest.raises(UsageError, match=r"^frame 0: .* found uint8 \(64, 3\)") as caught:
        _detector(_Counting(_spec())).detect(_frames(1)[0])  # type: ignore[arg-type]
    assert "goes into a list" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(conf=2), "`conf` is a number from 0 to 1, found 2"),
        (Selection(conf=float("nan")), "`conf` .* found nan"),
        (Selection(conf="high"), "`conf` .* found 'high'"),  # type: ignore[arg-type]
        (Selection(iou=-1), "`iou` is a number from 0 to 1, found -1"),
        (Selection(max_det=-1), "`max_det` is a whole number from 0 on, found -1"),
        (Selection(max_det=2.5), "`max_det` is a whole number from 0 on, found 2.5"),  # type: ignore[arg-type]
        (Selection(classes="a"), "`classes` is a tuple of class ids, found 'a'"),  # type: ignore[arg-type]
        (Selection(classes=("a",)), r"`classes` is a tuple of class ids, found \('a',\)"),  # type: ignore[arg-type]
        (Selection(classes=0), "`classes` is a tuple of class ids, found 0"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_selection(selection: Selection, words: str) -> None:
    session = _Counting(_spec())
    detector = _detector(session)
    calls: list[Any] = [
        detector.detect,
        lambda f, s: list(detector.stream(f, s)),
        lambda f, s: detector.detect_at(f[0], (32, 64), s),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=words):
            call(_frames(1), selection)
    assert session.shapes == []


def test_numbers_of_numpy_are_numbers() -> None:
    chosen = Selection(conf=np.float32(0.5), classes=(np.int64(0),), max_det=np.int32(1))  # type: ignore[arg-type]
    assert _scores(_detector(_Counting(_spec())).detect(_frames(9), chosen)) == [9]


@pytest.mark.parametrize("paths", ["in", b"in", Path("in")])
def test_one_path_is_no_list_of_files(paths: Any) -> None:
    with pytest.raises(UsageError, match=r"`paths` is a list of image files, found .*in'"):
        next(_detector(_Counting(_spec())).detect_files(paths))
