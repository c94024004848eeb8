"""The GPU kernels, run on the CPU by a fiber per thread, against OpenCV and a brute-force reference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_gpu import FakeCuda, fake_gpu, fake_kernels
from kernel_emulation import Emulated, compiled

from head_reference import Result, reference
from yolotrt_core.inference.letterbox import geometry, preprocess
from yolotrt_core.types import Detections, ModelSpec, Selection, TensorSpec
from yolotrt_tensorrt.cuda.device import PinnedPool
from yolotrt_tensorrt.runtime import device_structs, mask_drawing, postprocess
from yolotrt_tensorrt.runtime.loaded_engine import Tensor
from yolotrt_tensorrt.runtime.mask_drawing import MaskDrawing
from yolotrt_tensorrt.runtime.postprocess import Decoding, Inputs
from yolotrt_yolov5 import segment


@pytest.fixture(scope="module", params=["float32", "float16"])
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return compiled(request.param, tmp_path_factory.mktemp(request.param))


def grid(batch: int, target: tuple[int, int]) -> tuple[int, int, int]:
    return (target[1] + 31) // 32, (target[0] + 7) // 8, batch


def frames_block(shapes: list[tuple[int, ...]], arrays: list[np.ndarray], target: tuple[int, int]) -> np.ndarray:
    packed = b"".join(device_structs.pack_frame(s, a.ctypes.data, target) for s, a in zip(shapes, arrays, strict=True))
    return np.frombuffer(packed, device_structs.FRAME).copy()


def test_structures_have_the_sizes_of_the_kernels(emulated: Emulated) -> None:
    sizes = np.zeros(5, np.int32)
    emulated.library.sizes(sizes.ctypes.data_as(ctypes.c_void_p))
    ours = [
        d.itemsize for d in (device_structs.FRAME, device_structs.REQUEST, device_structs.FOUND, device_structs.SUMMARY)
    ]
    assert sizes.tolist() == [*ours, device_structs.BOX_BYTES]
    assert len(device_structs.pack_frame((4, 6, 3), 7, (32, 32))) == device_structs.FRAME.itemsize
    request = np.frombuffer(
        device_structs.pack_request(3, Selection(conf=0.5, iou=0.25, max_det=9)), device_structs.REQUEST
    )[0]
    assert (request["images"], request["conf"], request["iou"], request["max_det"]) == (3, 0.5, 0.25, 9)


SHAPES = [(108, 192), (48, 64), (43, 64), (1, 1), (3, 2), (1, 300), (300, 1), (128, 128), (96, 128), (65, 63), (64, 64)]


def test_letterbox_is_the_cpus_bit_for_bit(emulated: Emulated) -> None:
    dtype = emulated.dtype
    rng = np.random.default_rng(3)
    target = (64, 64)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    block = frames_block([p.shape for p in images], images, target)
    request = np.frombuffer(device_structs.pack_request(len(images), Selection()), np.uint8)
    out = np.full((len(images), 3, *target), 7, dtype)
    emulated.launch("letterbox", grid(len(images), target), request, block, out, *target)
    expected, _ = preprocess(images, target)
    np.testing.assert_array_equal(out, expected.astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_letterbox_into_channels_last_is_the_cpus(dtype: str, tmp_path: Path) -> None:
    emulated = compiled(dtype, tmp_path, "nhwc")
    target = (32, 96)
    images = [np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    block = frames_block([p.shape for p in images], images, target)
    request = np.frombuffer(device_structs.pack_request(len(images), Selection()), np.uint8)
    out = np.full((len(images), *target, 3), 7, dtype)
    emulated.launch("letterbox", grid(len(images), target), request, block, out, *target)
    expected, _ = preprocess(images, target, layout="nhwc")
    np.testing.assert_array_equal(out, expected.astype(dtype))


def test_nv12_is_opencvs_conversion_then_the_letterbox(emulated: Emulated) -> None:
    dtype = emulated.dtype
    rng = np.random.default_rng(4)
    target = (64, 96)
    planes = [
        rng.integers(0, 256, (h * 3 // 2, w), dtype=np.uint8) for h, w in [(36, 64), (128, 192), (2, 2), (90, 50)]
    ]
    block = frames_block([p.shape for p in planes], planes, target)
    request = np.frombuffer(device_structs.pack_request(len(planes), Selection()), np.uint8)
    out = np.zeros((len(planes), 3, *target), dtype)
    emulated.launch("letterbox", grid(len(planes), target), request, block, out, *target)
    expected, _ = preprocess([cv2.cvtColor(p, cv2.COLOR_YUV2BGR_NV12) for p in planes], target)
    np.testing.assert_array_equal(out, expected.astype(dtype))


def test_images_beyond_the_request_are_left_alone(emulated: Emulated) -> None:
    dtype = emulated.dtype
    image = np.zeros((8, 8, 3), np.uint8)
    block = frames_block([image.shape] * 2, [image] * 2, (32, 32))
    request = np.frombuffer(device_structs.pack_request(1, Selection()), np.uint8)
    out = np.full((2, 3, 32, 32), 7, dtype)
    emulated.launch("letterbox", grid(2, (32, 32)), request, block, out, 32, 32)
    assert (out[0] == 0).all()
    assert (out[1] == 7).all()


def scene(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype, *, crowded: bool = False) -> np.ndarray:
    raw = np.zeros((rows, 5 + classes), np.float32)
    raw[:, :2] = rng.uniform(20, 44, (rows, 2)) if crowded else rng.uniform(0, 64, (rows, 2))
    raw[:, 2:4] = rng.uniform(4, 12, (rows, 2))
    raw[:, 4] = rng.uniform(0, 1, rows) if crowded else rng.uniform(0, 1, rows) ** 4
    raw[:, 5:] = rng.uniform(0, 1, (rows, classes))
    raw[:, 4:] = np.round(raw[:, 4:] * 8) / 8  # many equal scores
    return raw.astype(dtype)


SELECTIONS = [
    Selection(),
    Selection(conf=0.05, iou=0.6, multi_label=True),
    Selection(conf=0.05, iou=0.3, agnostic=True, max_det=5),
    Selection(conf=0.05, classes=(1, 2), multi_label=True),
    Selection(conf=0.05, classes=(0,)),
    Selection(conf=0.0, iou=0.0, multi_label=True, agnostic=True),
]


def run(
    emulated: Emulated,
    raw: np.ndarray,
    shapes: list[tuple[int, int]],
    chosen: Selection,
    prototypes: np.ndarray | None = None,
) -> list[Detections]:
    """Decode on the CPU through the host code of a slot."""
    cuda = FakeCuda()
    gpu = fake_gpu(cuda)
    pool, kernels = PinnedPool(gpu), fake_kernels(emulated, cuda)
    batch, classes = len(raw), raw.shape[2] - 5 - (0 if prototypes is None else prototypes.shape[1])
    arrays = [np.zeros((*s, 3), np.uint8) for s in shapes]
    block = frames_block([a.shape for a in arrays], arrays, (64, 64))
    request = np.frombuffer(device_structs.pack_request(batch, chosen), np.uint8)
    mask = np.frombuffer(device_structs.pack_class_mask(chosen.classes, classes), np.uint32)
    maps = 0 if prototypes is None else prototypes.ctypes.data
    inputs = Inputs(request.ctypes.data, block.ctypes.data, mask.ctypes.data, raw.ctypes.data, maps)
    with gpu.current():
        output = Tensor("output0", str(emulated.dtype), raw.shape)
        drawing = None
        if prototypes is not None:
            drawing = MaskDrawing(pool, kernels, Tensor("output1", str(emulated.dtype), prototypes.shape))
        slot = Decoding(gpu, pool, kernels, output, drawing)
        slot.reserve(chosen.max_det, multi_label=chosen.multi_label)
        stream = cuda.Stream(1)
        slot.enqueue(stream, inputs)
        found = slot.collect(stream, inputs, shapes, chosen.max_det)
        slot.close()
    assert cuda.live == 0
    return found


def check(found: Detections, expected: Result) -> None:
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.truncated == expected.truncated


@pytest.mark.parametrize("chosen", SELECTIONS, ids=str)
def test_boxes_are_the_references_with_ties_and_crowds(emulated: Emulated, chosen: Selection) -> None:
    shapes = [(48, 64), (100, 31)]
    for seed, crowded in ((0, False), (1, True)):
        rng = np.random.default_rng(seed)
        raw = np.stack([scene(rng, 300, 3, emulated.dtype, crowded=crowded) for _ in shapes])
        found = run(emulated, raw, shapes, chosen)
        for image, shape in enumerate(shapes):
            check(found[image], reference(raw[image], shape, (64, 64), chosen))


def test_no_candidate_gives_no_box(emulated: Emulated) -> None:
    (found,) = run(emulated, np.zeros((1, 257, 6), emulated.dtype), [(64, 64)], Selection())
    assert len(found) == found.truncated == 0
    assert found.boxes.shape == (0, 4)


def test_more_than_32_classes_and_damaged_values(emulated: Emulated) -> None:
    rng = np.random.default_rng(9)
    raw = scene(rng, 200, 83, emulated.dtype, crowded=True)
    raw[rng.integers(0, 200, 40), rng.integers(0, 88, 40)] = np.nan
    raw[rng.integers(0, 200, 40), rng.integers(0, 88, 40)] = np.inf
    for chosen in (Selection(conf=0.3), Selection(conf=0.7, multi_label=True, classes=(3, 64, 82))):
        (found,) = run(emulated, raw[None], [(64, 64)], chosen)
        check(found, reference(raw, (64, 64), (64, 64), chosen))


@pytest.mark.parametrize("emulated", ["float32"], indirect=True)
def test_more_boxes_than_the_usual_room_are_returned(emulated: Emulated) -> None:
    raw = scene(np.random.default_rng(2), 900, 2, emulated.dtype)
    raw[:, :2] = np.random.default_rng(3).uniform(0, 2000, (900, 2))
    raw[:, 4:] = 1
    chosen = Selection(max_det=700, multi_label=True)
    (found,) = run(emulated, raw[None], [(64, 64)], chosen)
    assert len(found) == 700
    check(found, reference(raw, (64, 64), (64, 64), chosen))


@pytest.mark.parametrize("emulated", ["float32"], indirect=True)
def test_any_number_of_candidates_is_decoded_exactly(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than one block sorts go through the launches that have no limit; the others do not."""
    monkeypatch.setattr(postprocess, "_FIRST_CAPACITY", 256)
    monkeypatch.setattr(postprocess, "_SCAN_BLOCKS", 3)
    rng = np.random.default_rng(5)
    shapes = [(64, 64), (30, 50)]
    raw = np.stack([scene(rng, 1500, 3, emulated.dtype, crowded=True), scene(rng, 1500, 3, emulated.dtype)])
    raw[1, 40:, 4] = 0
    chosen = Selection(conf=0.02, iou=0.5, multi_label=True, max_det=50)
    found = run(emulated, raw, shapes, chosen)
    for image, shape in enumerate(shapes):
        check(found[image], reference(raw[image], shape, (64, 64), chosen))
    assert found[0].truncated > 0


COEFFICIENTS = 4


@pytest.fixture(scope="module", params=["float32", "float16"])
def segmenting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return compiled(request.param, tmp_path_factory.mktemp(f"masks-{request.param}"), coefficients=COEFFICIENTS)


def segments(dtype: np.dtype, batch: int, rows: int = 60, *, crowded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return raw rows of 3 classes with coefficients, and smooth prototypes."""
    rng = np.random.default_rng(11)
    raw = np.stack([scene(rng, rows, 3, np.dtype(np.float32), crowded=crowded) for _ in range(batch)])
    raw[..., 2:4] *= 3
    coefficients = rng.normal(size=(batch, rows, COEFFICIENTS)) * 3
    maps = [[cv2.resize(rng.normal(size=(5, 5)), (16, 16)) for _ in range(COEFFICIENTS)] for _ in range(batch)]
    return np.concatenate((raw, coefficients), 2).astype(dtype), np.array(maps).astype(dtype)


def check_masks(
    found: list[Detections], raw: np.ndarray, maps: np.ndarray, sizes: list[tuple[int, int]], chosen: Selection
) -> int:
    """Compare with the CPU's decoding; return the number of masks with pixels."""
    spec = ModelSpec(
        (TensorSpec("images", "float32", (len(raw), 3, 64, 64)),),
        (TensorSpec("output0", "float32", raw.shape), TensorSpec("output1", "float32", maps.shape)),
        ("a", "b", "c"),
        (8,),
    )
    placed = [geometry(size, (64, 64)) for size in sizes]
    drawn = 0
    for ours, theirs in zip(
        found, segment.decode({"output0": raw, "output1": maps}, spec, placed, chosen), strict=True
    ):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        assert ours.masks is not None and theirs.masks is not None
        np.testing.assert_array_equal(ours.masks.windows, theirs.masks.windows)
        assert len(ours.masks) == len(ours) and ours.masks.size == theirs.masks.size
        for index in range(len(ours)):
            one, other = ours.masks.window(index), theirs.masks.window(index)
            # A pixel may differ where the enlarged map is within rounding of 0.5.
            assert np.count_nonzero(one != other) <= 1 + one.size // 5000
            drawn += bool(other.any())
    return drawn


# Enlarged, reduced, without padding, of one tile and of many, far smaller than the map.
SIZES = [(480, 640), (100, 31), (64, 64), (700, 300), (5, 4), (2, 60)]


@pytest.mark.parametrize("chosen", [Selection(), Selection(conf=0.05, iou=0.6, multi_label=True, max_det=20)], ids=str)
def test_masks_are_the_cpus(segmenting: Emulated, chosen: Selection) -> None:
    raw, maps = segments(segmenting.dtype, len(SIZES))
    found = run(segmenting, raw, SIZES, chosen, maps)
    assert check_masks(found, raw, maps, SIZES, chosen) > 20


@pytest.mark.parametrize("segmenting", ["float32"], indirect=True)
def test_masks_beyond_the_first_area_and_of_crowds(segmenting: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_FIRST_CAPACITY", 256)
    monkeypatch.setattr(mask_drawing, "_FIRST_AREA", 1000)
    sizes = [(200, 160), (30, 50)]
    raw, maps = segments(segmenting.dtype, 2, 600, crowded=True)
    raw[1, 40:, 4] = 0
    chosen = Selection(conf=0.02, multi_label=True, max_det=30)
    found = run(segmenting, raw, sizes, chosen, maps)
    assert check_masks(found, raw, maps, sizes, chosen) > 20


def test_images_without_objects_have_no_masks(segmenting: Emulated) -> None:
    raw, maps = segments(segmenting.dtype, 1)
    raw[:] = 0
    (found,) = run(segmenting, raw, [(64, 64)], Selection(), maps)
    assert found.masks is not None and len(found.masks) == 0
