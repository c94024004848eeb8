"""The GPU kernels, run on the CPU by a fiber per thread, against OpenCV and a brute-force reference."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolotrt_core.letterbox import geometry, letterbox, preprocess
from yolotrt_core.types import Selection
from yolotrt_tensorrt import layouts

PLUGINS = Path(layouts.__file__).parent.parent
SOURCES = ("kernels/prelude.cuh", "kernels/letterbox.cu", "../yolotrt_yolov5/head.cu", "kernels/suppress.cu")
ELEMENTS = {"float32": 0, "float16": 1}


@pytest.fixture(scope="module", params=list(ELEMENTS))
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ctypes.CDLL, np.dtype]:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    folder = tmp_path_factory.mktemp(request.param)
    text = "\n".join((PLUGINS / "yolotrt_tensorrt" / source).read_text() for source in SOURCES)
    (folder / "kernels.cu").write_text(f"#define ELEMENT {ELEMENTS[request.param]}\n{text}")
    (folder / "emulation.cpp").write_text(Path(__file__).with_name("emulation.cpp").read_text())
    command = [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-fpermissive", "-w", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", folder / "kernels.so", folder / "emulation.cpp"], check=True)
    return ctypes.CDLL(folder / "kernels.so"), np.dtype(request.param)


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def frames_block(shapes: list[tuple[int, ...]], arrays: list[np.ndarray], target: tuple[int, int]) -> np.ndarray:
    packed = b"".join(layouts.frame_bytes(s, a.ctypes.data, target) for s, a in zip(shapes, arrays, strict=True))
    return np.frombuffer(packed, layouts.FRAME).copy()


def test_structures_have_the_sizes_of_the_kernels(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    sizes = np.zeros(5, np.int32)
    emulated[0].sizes(address(sizes))
    ours = [d.itemsize for d in (layouts.FRAME, layouts.REQUEST, layouts.FOUND, layouts.SUMMARY)]
    assert sizes.tolist() == [*ours, layouts.BOX_BYTES]
    assert len(layouts.frame_bytes((4, 6, 3), 7, (32, 32))) == layouts.FRAME.itemsize
    request = np.frombuffer(layouts.request_bytes(3, Selection(conf=0.5, iou=0.25, max_det=9)), layouts.REQUEST)[0]
    assert (request["images"], request["conf"], request["iou"], request["max_det"]) == (3, 0.5, 0.25, 9)


SHAPES = [(108, 192), (48, 64), (43, 64), (1, 1), (3, 2), (1, 300), (300, 1), (128, 128), (96, 128), (65, 63), (64, 64)]


def test_letterbox_is_the_cpus_bit_for_bit(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    library, dtype = emulated
    rng = np.random.default_rng(3)
    target = (64, 64)
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    block = frames_block([p.shape for p in pictures], pictures, target)
    request = np.frombuffer(layouts.request_bytes(len(pictures), Selection()), np.uint8)
    out = np.full((len(pictures), 3, *target), 7, dtype)
    library.run_letterbox(address(request), address(block), address(out), len(pictures), *target)
    expected, _ = preprocess(pictures, target)
    np.testing.assert_array_equal(out, expected.astype(dtype))


def test_nv12_is_opencvs_conversion_then_the_letterbox(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    library, dtype = emulated
    rng = np.random.default_rng(4)
    target = (64, 96)
    planes = [
        rng.integers(0, 256, (h * 3 // 2, w), dtype=np.uint8) for h, w in [(36, 64), (128, 192), (2, 2), (90, 50)]
    ]
    block = frames_block([p.shape for p in planes], planes, target)
    request = np.frombuffer(layouts.request_bytes(len(planes), Selection()), np.uint8)
    out = np.zeros((len(planes), 3, *target), dtype)
    library.run_letterbox(address(request), address(block), address(out), len(planes), *target)
    expected, _ = preprocess([cv2.cvtColor(p, cv2.COLOR_YUV2BGR_NV12) for p in planes], target)
    np.testing.assert_array_equal(out, expected.astype(dtype))


def test_images_beyond_the_request_are_left_alone(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    library, dtype = emulated
    picture = np.zeros((8, 8, 3), np.uint8)
    block = frames_block([picture.shape] * 2, [picture] * 2, (32, 32))
    request = np.frombuffer(layouts.request_bytes(1, Selection()), np.uint8)
    out = np.full((2, 3, 32, 32), 7, dtype)
    library.run_letterbox(address(request), address(block), address(out), 2, 32, 32)
    assert (out[0] == 0).all()
    assert (out[1] == 7).all()
    assert letterbox(picture, (32, 32))[0].shape == (32, 32, 3)


@dataclass
class Result:
    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    truncated: int


def reference(raw: np.ndarray, shape: tuple[int, int], target: tuple[int, int], chosen: Selection) -> Result:
    """The stated semantics, one candidate after the other, as plainly as they can be written."""
    f32 = np.float32
    raw = raw.astype(f32)
    candidates = []
    for row, values in enumerate(raw):
        x, y, w, h, objectness = values[:5]
        with np.errstate(all="ignore"):
            box = (x - w / f32(2), y - h / f32(2), x + w / f32(2), y + h / f32(2))
            scores = values[5:] * objectness
        if not (objectness > f32(chosen.conf) and np.isfinite(objectness) and np.isfinite(box).all()):
            continue
        passing = [(-s, row, c) for c, s in enumerate(scores) if s > f32(chosen.conf) and np.isfinite(s)]
        if not chosen.multi_label:
            passing = sorted(passing)[:1]
        candidates += [(*p, box) for p in passing if not chosen.classes or p[2] in chosen.classes]
    kept: list[Any] = []
    for candidate in sorted(candidates, key=lambda c: c[:3]):
        rivals = [k for k in kept if chosen.agnostic or k[2] == candidate[2]]
        if not any(iou(k[3], candidate[3]) > chosen.iou for k in rivals):
            kept.append(candidate)
    placed = geometry(shape, target)
    pad = np.array([*placed.pad, *placed.pad], f32)
    boxes = np.array([k[3] for k in kept], f32).reshape(-1, 4)
    boxes = np.clip((boxes - pad) / f32(placed.scale), 0, np.array([shape[1], shape[0]] * 2, f32))
    first = slice(0, chosen.max_det)
    return Result(
        boxes[first],
        np.array([-k[0] for k in kept], f32)[first],
        np.array([k[2] for k in kept], np.int64)[first],
        max(0, len(kept) - chosen.max_det),
    )


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    ax1, ay1, ax2, ay2 = (float(v) for v in a)
    bx1, by1, bx2, by2 = (float(v) for v in b)
    inter = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
    area_a, area_b = max(ax2 - ax1, 0.0) * max(ay2 - ay1, 0.0), max(bx2 - bx1, 0.0) * max(by2 - by1, 0.0)
    union = area_a + area_b - inter
    return inter / union if union > 0 else 0.0


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
    emulated: tuple[ctypes.CDLL, np.dtype], raw: np.ndarray, shapes: list[tuple[int, int]], chosen: Selection
) -> Any:
    library, _ = emulated
    batch, rows, columns = raw.shape
    capacity, room, classes = 4096, 300, columns - 5
    arrays = [np.zeros((*s, 3), np.uint8) for s in shapes]
    block = frames_block([a.shape for a in arrays], arrays, (64, 64))
    request = np.frombuffer(layouts.request_bytes(batch, chosen), np.uint8)
    mask = np.frombuffer(layouts.class_mask(chosen.classes, classes), np.uint32)
    keys, counts = np.zeros((batch, capacity), np.uint64), np.zeros(batch, np.uint32)
    boxes, groups = np.zeros((batch, capacity, 4), np.float32), np.zeros((batch, capacity), np.int32)
    summaries, found = np.zeros(batch, layouts.SUMMARY), np.zeros((batch, room), layouts.FOUND)
    head = (address(raw), batch, rows, columns)
    library.run_find(address(request), address(mask), *head, address(keys), address(counts), capacity)
    assert (counts <= capacity).all()
    tables = (address(keys), address(counts), capacity, address(boxes), address(groups))
    library.run_suppress(address(request), address(block), *head, *tables, address(summaries), address(found), room)
    return summaries, found


def check(summary: Any, found: np.ndarray, expected: Result) -> None:
    count = len(expected.scores)
    assert summary["kept"] == count + expected.truncated
    np.testing.assert_array_equal(found["score"][:count], expected.scores)
    np.testing.assert_array_equal(found["class_id"][:count], expected.class_ids)
    boxes = np.stack([found[n][:count] for n in ("x1", "y1", "x2", "y2")], -1)
    np.testing.assert_array_equal(boxes, expected.boxes)


@pytest.mark.parametrize("chosen", SELECTIONS, ids=str)
def test_boxes_are_the_references_with_ties_and_crowds(
    emulated: tuple[ctypes.CDLL, np.dtype], chosen: Selection
) -> None:
    dtype = emulated[1]
    shapes = [(48, 64), (100, 31)]
    for seed, crowded in itertools.product(range(2), (False, True)):
        rng = np.random.default_rng(seed)
        raw = np.stack([scene(rng, 300, 3, dtype, crowded=crowded) for _ in shapes])
        summaries, found = run(emulated, raw, shapes, chosen)
        for image, shape in enumerate(shapes):
            check(summaries[image], found[image], reference(raw[image], shape, (64, 64), chosen))


def test_no_candidate_gives_no_box(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    summaries, _ = run(emulated, np.zeros((1, 257, 6), emulated[1]), [(64, 64)], Selection())
    assert summaries["kept"].tolist() == summaries["candidates"].tolist() == [0]


def test_more_than_32_classes_and_damaged_values(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    rng = np.random.default_rng(9)
    raw = scene(rng, 200, 83, emulated[1], crowded=True)
    raw[rng.integers(0, 200, 40), rng.integers(0, 88, 40)] = np.nan
    raw[rng.integers(0, 200, 40), rng.integers(0, 88, 40)] = np.inf
    for chosen in (Selection(conf=0.3), Selection(conf=0.7, multi_label=True, classes=(3, 64, 82))):
        summaries, found = run(emulated, raw[None], [(64, 64)], chosen)
        check(summaries[0], found[0], reference(raw, (64, 64), (64, 64), chosen))


def test_scratch_that_is_too_small_is_said_not_cut(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    library, dtype = emulated
    raw = scene(np.random.default_rng(1), 300, 3, dtype, crowded=True)
    request = np.frombuffer(layouts.request_bytes(1, Selection(conf=0.01, multi_label=True)), np.uint8)
    keys, counts = np.full(64 + 8, 5, np.uint64), np.zeros(1, np.uint32)
    library.run_find(address(request), address(None), address(raw), 1, *raw.shape, address(keys), address(counts), 64)
    assert counts[0] > 500
    assert (keys[64:] == 5).all()
    summaries = np.zeros(1, layouts.SUMMARY)
    tables = (address(keys), address(counts), 64, address(None), address(None))
    library.run_suppress(
        address(request), address(None), address(raw), 1, *raw.shape, *tables, address(summaries), address(None), 0
    )
    assert summaries["overflow"][0] == 1
    assert summaries["candidates"][0] == counts[0]


def test_any_number_of_candidates_by_several_launches(emulated: tuple[ctypes.CDLL, np.dtype]) -> None:
    library, dtype = emulated
    rows, classes, room = 1500, 3, 300
    raw = scene(np.random.default_rng(5), rows, classes, dtype, crowded=True)
    chosen = Selection(conf=0.02, iou=0.5, multi_label=True)
    picture = np.zeros((64, 64, 3), np.uint8)
    block = frames_block([picture.shape], [picture], (64, 64))
    request = np.frombuffer(layouts.request_bytes(1, chosen), np.uint8)
    size = 8192
    keys, counts = np.zeros(size, np.uint64), np.zeros(1, np.uint32)
    library.run_find(address(request), address(None), address(raw), 1, *raw.shape, address(keys), address(counts), size)
    count = int(counts[0])
    assert count > 2048
    library.run_pad(address(keys), count, size)
    library.run_sort_blocks(address(keys), size, 2, 2048)
    run_length = 4096
    while run_length <= size:
        step = run_length // 2
        while step >= 2048:
            library.run_sort_step(address(keys), size, run_length, step)
            step //= 2
        library.run_sort_blocks(address(keys), size, run_length, run_length)
        run_length *= 2
    assert (np.diff(keys[:count].astype(object)) > 0).all()
    boxes, groups = np.zeros((size, 4), np.float32), np.zeros(size, np.int32)
    head = (address(raw), *raw.shape, 0)
    library.run_order(address(request), *head, address(keys), count, address(boxes), address(groups))
    removed, state, kept_list = np.zeros(size // 32, np.uint32), np.zeros(2, np.uint32), np.zeros(1024, np.uint32)
    summaries, found = np.zeros(1, layouts.SUMMARY), np.zeros(room, layouts.FOUND)
    tables = (address(keys), count, address(boxes), address(groups), address(removed))
    for begin in range(0, count, 1024):
        end = min(begin + 1024, count)
        out = (address(state), address(kept_list), address(summaries), address(found), room)
        library.run_chunk(address(request), address(block), *head, *tables, begin, end, *out)
        library.run_rest(address(request), end, count, address(boxes), address(groups), address(removed), *out[:2])
    check(summaries[0], found, reference(raw, (64, 64), (64, 64), chosen))
