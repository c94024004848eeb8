"""The kernels on a GPU: against OpenCV on real images of many sizes, and against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from head_reference import reference
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.plugin.stages import DeviceProgram
from yolotrt_core.types import Detections, Layout, ModelSpec, Selection, TensorSpec, with_channels
from yolotrt_tensorrt.cuda.device import DeviceMemory, Gpu, PinnedPool, open_gpu
from yolotrt_tensorrt.cuda.kernels_loader import load_kernels
from yolotrt_tensorrt.runtime import postprocess as decoding_module
from yolotrt_tensorrt.runtime.device_structs import FRAME, REQUEST, pack_class_mask, pack_frame, pack_request
from yolotrt_tensorrt.runtime.loaded_engine import Tensor
from yolotrt_tensorrt.runtime.postprocess import Decoding, Inputs
from yolotrt_yolov5.device_program import device_program

pytestmark = pytest.mark.gpu

SIZES = [(480, 640), (427, 640), (333, 499), (1080, 1920), (2160, 3840), (1280, 1280), (961, 1279), (7, 5), (1, 1)]
SIZES += [(1, 900), (900, 1), (640, 640), (37, 2000), (2000, 37), (320, 320), (1279, 639)]


class NoCache:
    """A side cache that keeps nothing: everything is compiled."""

    def load(self, name: str, material: Any) -> None:
        return None

    def save(self, name: str, material: Any, data: bytes) -> None:
        return None


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return open_gpu(0)


def program(columns: int) -> DeviceProgram:
    labels = tuple(str(n) for n in range(columns - 5))
    return device_program(ModelSpec((), (TensorSpec("output0", "float32", (1, 1, columns)),), labels, (8,)))


def letterboxed(
    gpu: Gpu, images: list[np.ndarray], target: tuple[int, int], dtype: str, layout: Layout = "nchw"
) -> np.ndarray:
    kernel = load_kernels(gpu, dtype, NoCache(), layout=layout)["letterbox"]
    kind = np.dtype(dtype)
    with gpu.current():
        stream = gpu.stream()
        held = [DeviceMemory(gpu, p.nbytes) for p in images]
        packed = pack_request(len(images), Selection())
        for memory, image in zip(held, images, strict=True):
            gpu.cuda.memcpy_htod(memory.address, np.ascontiguousarray(image))
            packed += pack_frame(image.shape, memory.address, target)
        block = DeviceMemory(gpu, len(packed))
        gpu.cuda.memcpy_htod(block.address, np.frombuffer(packed, np.uint8))
        out = np.empty(with_channels(len(images), *target, layout), kind)
        memory = DeviceMemory(gpu, out.nbytes)
        gpu.cuda.memset_d8(memory.address, 0xA5, out.nbytes)
        grid = ((target[1] + 31) // 32, (target[0] + 7) // 8, len(images))
        kernel(grid, stream, block.address, block.address + REQUEST.itemsize, memory.address, *target)
        stream.synchronize()
        gpu.cuda.memcpy_dtoh(out, memory.address)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("target", [(640, 640), (384, 672)])
def test_letterbox_is_the_cpus_on_real_images(gpu: Gpu, data: Path, target: tuple[int, int], dtype: str) -> None:
    files = sorted((data / "coco" / "images" / "val").glob("*.jpg"))
    images = [cv2.imread(str(f)) for f in files[:8]]
    images += [cv2.resize(images[i % 8], size[::-1], interpolation=cv2.INTER_CUBIC) for i, size in enumerate(SIZES)]
    expected, _ = preprocess(images, target)
    found = letterboxed(gpu, images, target, dtype)
    np.testing.assert_array_equal(found, expected.astype(dtype))


def test_letterbox_into_channels_last_is_the_cpus(gpu: Gpu, data: Path) -> None:
    files = sorted((data / "coco" / "images" / "val").glob("*.jpg"))
    images = [cv2.imread(str(f)) for f in files[:8]]
    expected, _ = preprocess(images, (384, 672), layout="nhwc")
    found = letterboxed(gpu, images, (384, 672), "float16", "nhwc")
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_nv12_is_opencvs_conversion_then_the_letterbox(gpu: Gpu, data: Path) -> None:
    files = sorted((data / "coco" / "images" / "val").glob("*.jpg"))
    planes = []
    for file, (height, width) in zip(files, [(480, 640), (1080, 1920), (2, 2), (360, 202)], strict=False):
        yuv = cv2.cvtColor(cv2.resize(cv2.imread(str(file)), (width, height)), cv2.COLOR_BGR2YUV_I420)
        chroma = yuv[height:].reshape(2, height // 2, width // 2).transpose(1, 2, 0)
        planes.append(np.concatenate([yuv[:height], chroma.reshape(height // 2, width)]))
    expected, _ = preprocess([cv2.cvtColor(p, cv2.COLOR_YUV2BGR_NV12) for p in planes], (640, 640))
    np.testing.assert_array_equal(letterboxed(gpu, planes, (640, 640), "float32"), expected)


def scene(rng: np.random.Generator, rows: int, classes: int, dtype: str, spread: float, steps: int) -> np.ndarray:
    """Boxes within `spread` pixels; scores in `steps` steps, so that many are equal."""
    raw = np.empty((rows, 5 + classes), np.float32)
    raw[:, :2] = 320 + rng.uniform(-spread, spread, (rows, 2))
    raw[:, 2:4] = rng.uniform(4, 120, (rows, 2))
    raw[:, 4:] = np.round(rng.uniform(0, 1, (rows, 1 + classes)) * steps) / steps
    return raw.astype(dtype)


def decoded(gpu: Gpu, raw: np.ndarray, shapes: list[tuple[int, int]], chosen: Selection) -> list[Detections]:
    batch, rows, columns = raw.shape
    kernels = load_kernels(gpu, str(raw.dtype), NoCache(), program(columns))
    packed = pack_request(batch, chosen)
    for height, width in shapes:
        packed += pack_frame((height, width, 3), 0, (640, 640))
    packed += pack_class_mask(chosen.classes, columns - 5)
    with gpu.current():
        stream = gpu.stream()
        block, memory = DeviceMemory(gpu, len(packed)), DeviceMemory(gpu, raw.nbytes)
        gpu.cuda.memcpy_htod(block.address, np.frombuffer(packed, np.uint8))
        gpu.cuda.memcpy_htod(memory.address, np.ascontiguousarray(raw))
        frames = block.address + REQUEST.itemsize
        inputs = Inputs(block.address, frames, frames + batch * FRAME.itemsize, memory.address)
        decoding = Decoding(gpu, PinnedPool(gpu), kernels, Tensor("output0", str(raw.dtype), (batch, rows, columns)))
        decoding.reserve(chosen.max_det, multi_label=chosen.multi_label)
        decoding.enqueue(stream, inputs)
        stream.synchronize()
        found = decoding.collect(stream, inputs, shapes, chosen.max_det)
        decoding.close()
    return found


def same(found: Detections, raw: np.ndarray, shape: tuple[int, int], chosen: Selection) -> None:
    expected = reference(raw, shape, (640, 640), chosen)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.truncated == expected.truncated


SELECTIONS = [
    Selection(),
    Selection(conf=0.1, iou=0.6, multi_label=True),
    Selection(conf=0.3, iou=0.2, agnostic=True, max_det=7),
    Selection(conf=0.2, multi_label=True, classes=(2, 1), max_det=1000),
]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("chosen", SELECTIONS, ids=str)
@pytest.mark.parametrize(("spread", "steps"), [(300, 1000), (20, 8)], ids=["spread", "crowded"])
def test_boxes_are_the_references(gpu: Gpu, chosen: Selection, spread: float, steps: int, dtype: str) -> None:
    rng = np.random.default_rng(11)
    raw = np.stack([scene(rng, 700, 4, dtype, spread, steps) for _ in range(3)])
    shapes = [(640, 640), (480, 640), (1000, 333)]
    for image, found in enumerate(decoded(gpu, raw, shapes, chosen)):
        same(found, raw[image], shapes[image], chosen)


@pytest.mark.parametrize("first", [256, 4096], ids=["by many blocks", "by one block"])
def test_thousands_of_candidates_are_exact_too(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(decoding_module, "_FIRST_CAPACITY", first)
    rng = np.random.default_rng(12)
    raw = np.stack([scene(rng, 1300, 3, "float32", 250, 500), scene(rng, 1300, 3, "float32", 30, 6)])
    raw[1, 30:, 4] = 0
    chosen = Selection(conf=0.05, iou=0.5, multi_label=True, max_det=4000)
    shapes = [(640, 640), (640, 640)]
    for image, found in enumerate(decoded(gpu, raw, shapes, chosen)):
        same(found, raw[image], shapes[image], chosen)


def test_a_hundred_thousand_candidates_lose_nothing(gpu: Gpu) -> None:
    """Equal boxes of many classes: exactly one of each stays, the best, ties to the lowest row."""
    rng = np.random.default_rng(13)
    rows, classes = 5000, 40
    raw = np.zeros((1, rows, 5 + classes), np.float32)
    raw[..., :4] = (300, 300, 50, 50)
    raw[..., 4] = 1
    raw[..., 5:] = np.round(rng.uniform(0.3, 1, (rows, classes)) * 50) / 50
    (found,) = decoded(gpu, raw, [(640, 640)], Selection(conf=0.2, multi_label=True, max_det=100))
    best = raw[0, :, 5:].max(axis=0)
    assert len(found) == classes
    order = np.lexsort((np.arange(classes), np.argmax(raw[0, :, 5:], axis=0), -best))
    np.testing.assert_array_equal(found.class_ids, order)
    np.testing.assert_array_equal(found.scores, best[order])


def test_a_recorded_graph_replays_the_decoding(gpu: Gpu) -> None:
    from yolotrt_tensorrt.cuda import graph as cuda_graph
    from yolotrt_tensorrt.cuda.graph import Graph

    if not cuda_graph.available():
        pytest.skip("cuda-python is not installed: pip install cuda-python")
    rng = np.random.default_rng(14)
    raws = [scene(rng, 700, 4, "float32", 200, 100)[None] for _ in range(3)]
    chosen = Selection(conf=0.3)
    kernels = load_kernels(gpu, "float32", NoCache(), program(9))
    packed = pack_request(1, chosen) + pack_frame((640, 640, 3), 0, (640, 640)) + pack_class_mask((), 4)
    with gpu.current():
        stream = gpu.stream()
        block, memory = DeviceMemory(gpu, len(packed)), DeviceMemory(gpu, raws[0].nbytes)
        gpu.cuda.memcpy_htod(block.address, np.frombuffer(packed, np.uint8))
        frames = block.address + REQUEST.itemsize
        inputs = Inputs(block.address, frames, frames + FRAME.itemsize, memory.address)
        decoding = Decoding(gpu, PinnedPool(gpu), kernels, Tensor("output0", "float32", raws[0].shape))
        decoding.enqueue(stream, inputs)
        graph = Graph(stream.handle, lambda: decoding.enqueue(stream, inputs))
        for raw in raws:
            gpu.cuda.memcpy_htod(memory.address, raw)
            graph.launch()
            stream.synchronize()
            same(decoding.collect(stream, inputs, [(640, 640)], 300)[0], raw[0], (640, 640), chosen)
        graph.close()
        decoding.close()


def test_a_source_that_does_not_compile_says_why(gpu: Gpu) -> None:
    from yolotrt_core.errors import StageError

    with pytest.raises(StageError, match=r"do not compile: .*error"):
        load_kernels(gpu, "float32", NoCache(), DeviceProgram("output0", 1, "struct Head { what };"))
