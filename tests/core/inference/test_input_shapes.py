"""Which batches an engine takes, and what its refusal says."""

from __future__ import annotations

import numpy as np
import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.input_shapes import IMAGE_SIZE, PROFILE, refuse_unfit
from yolotrt_core.types import EngineSpec, ModelSpec, ShapeRange, TensorSpec

PROFILES = (
    ShapeRange((1, 64, 64), (1, 64, 96), (2, 96, 96)),
    ShapeRange((8, 320, 320), (8, 320, 320), (8, 320, 320)),
)


def engine(shape: tuple[int | str, ...], profiles: tuple[ShapeRange, ...] = ()) -> EngineSpec:
    model = ModelSpec((TensorSpec("images", "float16", shape),), (), ("a",), (8, 16, 32))
    return EngineSpec(model, "fp16", "any", {}, profiles)


STATIC = engine((1, 3, 64, 96))
FREE = engine(("b", 3, "h", "w"))
LAST = engine(("b", "h", "w", 3), PROFILES)
RANGED = engine(("b", 3, "h", "w"), PROFILES)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (STATIC, (1, 3, 64, 96)),
        (FREE, (5, 3, 32, 640)),
        (RANGED, (1, 3, 64, 64)),
        (RANGED, (2, 3, 96, 64)),
        (RANGED, (8, 3, 320, 320)),
        (LAST, (2, 96, 64, 3)),
        (LAST, (8, 320, 320, 3)),
    ],
)
def test_accepted(spec: EngineSpec, shape: tuple[int, ...]) -> None:
    refuse_unfit(np.zeros(shape, np.float32), spec)


@pytest.mark.parametrize(
    ("spec", "images", "complaint"),
    [
        (STATIC, np.zeros((2, 3, 64, 96), np.float32), r"accepts float32 \(1, 3, 64, 96\), found float32 \(2, 3, 64"),
        (STATIC, np.zeros((1, 3, 64, 96)), "found float64"),
        (STATIC, np.zeros((1, 3, 64, 96), np.uint8), "found uint8"),
        (STATIC, np.zeros((3, 64, 96), np.float32), r"found float32 \(3, 64, 96\)"),
        (STATIC, [[1.0]], "found list"),
        (FREE, np.zeros((1, 1, 64, 64), np.float32), r"accepts float32 \(b, 3, h, w\), found float32 \(1, 1, 64, 64\)"),
        (FREE, np.zeros((0, 3, 64, 64), np.float32), r"found float32 \(0, 3"),
        (FREE, np.zeros((1, 3, 64, 48), np.float32), "multiples of 32"),
        (LAST, np.zeros((1, 3, 64, 64), np.float32), r"accepts float32 \(b, h, w, 3\) with .*found float32 \(1, 3, 64"),
        (LAST, np.zeros((1, 64, 128, 3), np.float32), "found float32"),
        (LAST, np.zeros((1, 64, 80, 3), np.float32), "multiples of 32"),
        (RANGED, np.zeros((3, 3, 64, 64), np.float32), "from 1x64x64 to 2x96x96 or from 8x320x320 to 8x320x320"),
        (RANGED, np.zeros((4, 3, 192, 192), np.float32), "found float32"),  # between two profiles is in none
        (RANGED, np.zeros((1, 3, 64, 128), np.float32), "found float32"),
    ],
)
def test_refused_with_what_is_accepted(spec: EngineSpec, images: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        refuse_unfit(images, spec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("640", (640, 640)),
        ("480,640", (480, 640)),
        (" 480 , 640 ", (480, 640)),
        (640, (640, 640)),
        ([480, 640], (480, 640)),
    ],
)
def test_sizes(text: object, size: tuple[int, int]) -> None:
    assert IMAGE_SIZE.read(text) == size


@pytest.mark.parametrize(
    "text",
    ["640 480", "6 40", "6_40", "640.0", "６４０", "640,", "640,480,3", "+640", "", [640.0], [True]],
)
def test_sizes_that_could_be_misread(text: object) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        IMAGE_SIZE.read(text)
    with pytest.raises(ValueError, match=r"^$"):
        PROFILE.read(f"1x{text}x640:1x640x640:1x640x640")
