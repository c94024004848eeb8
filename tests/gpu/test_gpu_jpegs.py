"""JPEG files decoded on the GPU: pixels and boxes beside OpenCV's, and files it must leave to OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.types import EngineSpec, Selection
from yolotrt_tensorrt import TensorRTOptions
from yolotrt_tensorrt.runner import EngineSession, open_session
from yolotrt_yolov5.device import device_program

pytestmark = pytest.mark.gpu
CHOSEN = Selection(conf=0.3, iou=0.45)


class NoCache:
    """A side cache that keeps nothing."""

    def load(self, name: str, material: object) -> None:
        return None

    def save(self, name: str, material: object, data: bytes) -> None:
        pass


@pytest.fixture(scope="module")
def session(engine: Callable[[str], tuple[Path, EngineSpec]]) -> Iterator[EngineSession]:
    pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec (extra `nvjpeg`)")
    path, spec = engine("fp16-b8")
    with open_session(path, spec, TensorRTOptions(gpu_jpeg=True), NoCache()) as opened:
        assert opened.decodes_files
        yield opened


@pytest.fixture(scope="module")
def files(data: Path) -> list[Path]:
    return sorted((data / "coco" / "images" / "val").glob("*.jpg"))


def test_pixels_are_nearly_opencvs(session: EngineSession, files: list[Path]) -> None:
    decoded = session.decode([f.read_bytes() for f in files])
    assert sum(d is None for d in decoded) <= len(files) // 10
    for file, picture in zip(files, decoded, strict=True):
        if picture is not None:
            apart = np.abs(picture.to_host().astype(int) - cv2.imread(str(file)))
            assert apart.mean() < 1.0, file.name
            assert (apart > 8).mean() < 0.01, file.name


def test_boxes_are_nearly_those_of_opencvs_pixels(session: EngineSession, files: list[Path]) -> None:
    program = device_program(session.spec.model)
    host = [cv2.imread(str(f)) for f in files]
    decoded = session.decode([f.read_bytes() for f in files])
    frames = [h if d is None else d for d, h in zip(decoded, host, strict=True)]
    total = matched = 0
    for ours, theirs in zip(
        session.stream(iter(frames), program, CHOSEN), session.detect(host, program, CHOSEN), strict=True
    ):
        far = np.abs(theirs.boxes[:, None] - ours.boxes[None]).max(-1, initial=0)
        total += len(theirs)
        matched += int(((far < 4) & (theirs.class_ids[:, None] == ours.class_ids[None])).any(axis=1).sum())
    assert total > 200
    assert matched >= 0.95 * total


def test_what_opencv_must_read_is_left_to_it(session: EngineSession, files: list[Path]) -> None:
    good = files[0].read_bytes()
    _, png = cv2.imencode(".png", np.zeros((20, 30, 3), np.uint8))
    broken = [b"", b"junk", png.tobytes(), good[: len(good) // 2], good[: good.index(b"\xff\xda")] + b"\xff\xd9"]
    decoded = session.decode([good, *broken, good])
    assert [d is None for d in decoded[1:-1]] == [True] * len(broken)
    first, last = decoded[0], decoded[-1]
    assert first is not None
    assert last is not None
    np.testing.assert_array_equal(first.to_host(), last.to_host())


def test_threads_and_memory_used_again_give_the_same(session: EngineSession, files: list[Path]) -> None:
    contents = [f.read_bytes() for f in files]
    expected = [None if d is None else d.to_host() for d in session.decode(contents)]

    def again(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(contents))[:24]
        for index, picture in zip(order, session.decode([contents[i] for i in order]), strict=True):
            assert (picture is None) == (expected[index] is None)
            if picture is not None:
                np.testing.assert_array_equal(picture.to_host(), expected[index])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(again, seed) for seed in range(16)]:
            done.result()
