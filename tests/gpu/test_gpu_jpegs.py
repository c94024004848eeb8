"""JPEG files decoded on the GPU: pixels and boxes beside OpenCV's, and files it must leave to OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.types import EngineSpec, Selection
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.runtime.session import EngineSession, open_session
from yolotrt_yolov5.device_program import device_program

pytestmark = pytest.mark.gpu
CHOSEN = Selection(conf=0.3, iou=0.45)
SAMPLINGS = {n: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{n}") for n in ("411", "420", "422", "440", "444")}


class NoCache:
    """A side cache that keeps nothing."""

    def load(self, name: str, material: object) -> None:
        return None

    def save(self, name: str, material: object, data: bytes) -> None:
        pass


@pytest.fixture(scope="module")
def session(engine: Callable[[str], tuple[Path, EngineSpec]]) -> Iterator[EngineSession]:
    path, spec = engine("fp16-b8")
    with open_session(path, spec, TensorRTOptions(), NoCache()) as opened:
        if not opened.decodes_files:
            pytest.skip("needs nvJPEG (extra `nvjpeg`) and a GPU with JPEG hardware")
        yield opened


@pytest.fixture(scope="module")
def files(data: Path) -> list[Path]:
    return sorted((data / "coco" / "images" / "val").glob("*.jpg"))


def test_pixels_are_opencvs(session: EngineSession, files: list[Path]) -> None:
    decoded = session.decode([f.read_bytes() for f in files])
    assert sum(d is None for d in decoded) <= len(files) // 10
    for file, image in zip(files, decoded, strict=True):
        if image is not None:
            np.testing.assert_array_equal(image.to_host(), cv2.imread(str(file)), err_msg=file.name)


@pytest.mark.parametrize("sampling", ["411", "420", "422", "440", "444", "grey"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 17), (480, 640), (1079, 1919)])
def test_every_sampling_and_odd_size_is_opencvs_or_left_to_it(
    session: EngineSession, size: tuple[int, int], sampling: str
) -> None:
    rng = np.random.default_rng(size[0])
    coarse = rng.integers(0, 256, (-(-size[0] // 6), -(-size[1] // 6), 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    flags = [] if sampling == "grey" else [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    good, data = cv2.imencode(".jpg", pixels[..., 0] if sampling == "grey" else pixels, flags)
    assert good
    (image,) = session.decode([data.tobytes()])
    if image is not None:
        apart = np.abs(image.to_host().astype(int) - cv2.imdecode(data, cv2.IMREAD_COLOR))
        assert apart.max() <= 1


def test_damaged_files_harm_no_other(session: EngineSession, files: list[Path]) -> None:
    contents = [f.read_bytes() for f in files[:8]]
    rng = np.random.default_rng(5)
    broken = []
    for content in contents:
        changed = bytearray(content)
        for at in rng.integers(content.index(b"\xff\xda") + 14, len(content) - 2, 40).tolist():
            changed[at] = int(rng.integers(0, 255))  # never a marker's first byte
        broken.append(bytes(changed))
    for _ in range(3):
        for file, image in zip(files, session.decode([*broken, *contents])[len(broken) :], strict=False):
            assert image is not None
            np.testing.assert_array_equal(image.to_host(), cv2.imread(str(file)), err_msg=file.name)
    (last,) = session.decode(contents[:1])
    assert last is not None
    np.testing.assert_array_equal(last.to_host(), cv2.imread(str(files[0])))


def test_boxes_are_those_of_opencvs_pixels(session: EngineSession, files: list[Path]) -> None:
    program = device_program(session.spec.model)
    host = [cv2.imread(str(f)) for f in files]
    decoded = session.decode([f.read_bytes() for f in files])
    frames = [h if d is None else d for d, h in zip(decoded, host, strict=True)]
    total = 0
    for ours, theirs in zip(
        session.stream(iter(frames), program, CHOSEN), session.detect(host, program, CHOSEN), strict=True
    ):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
        total += len(theirs)
    assert total > 200


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
        for index, image in zip(order, session.decode([contents[i] for i in order]), strict=True):
            assert (image is None) == (expected[index] is None)
            if image is not None:
                np.testing.assert_array_equal(image.to_host(), expected[index])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(again, seed) for seed in range(16)]:
            done.result()
