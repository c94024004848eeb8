"""Where the channels lie, by the shape alone."""

from __future__ import annotations

import pytest

from yolotrt_core.types import Layout, ModelSpec, TensorSpec, layout_of, with_channels, without_channels


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 3, 64, 96), "nchw"),
        ((1, 64, 96, 3), "nhwc"),
        (("batch", 3, "height", "width"), "nchw"),
        (("batch", "height", "width", 3), "nhwc"),
        ((-1, -1, -1, 3), "nhwc"),  # as TensorRT writes what is free
        ((3, 3, 32, 32), "nchw"),
        ((3, 32, 32, 3), "nhwc"),
        ((1, 1, 32, 32), "nchw"),
        ((1, 32, 32, 1), "nhwc"),
        (("batch", "height", "width", 4), "nhwc"),
        ((4, 4, 32, 64), "nchw"),
        ((1, 2, 32, 32), "nchw"),  # what no layout fits is for others to refuse
        ((3, 3), "nchw"),
        ((), "nchw"),
    ],
)
def test_the_shape_tells(shape: tuple[int | str, ...], layout: Layout) -> None:
    assert layout_of(shape) == layout
    assert ModelSpec((TensorSpec("images", "float32", shape),), (), (), ()).layout == layout


@pytest.mark.parametrize("sides", [(1, 64, 96), (3, 32, 32), ("b", "h", "w")])
def test_sides_come_back(sides: tuple[int | str, ...]) -> None:
    batch, height, width = sides
    assert with_channels(batch, height, width, "nchw") == (batch, 3, height, width)
    assert with_channels(batch, height, width, "nhwc") == (batch, height, width, 3)
    for layout in ("nchw", "nhwc"):
        shape = with_channels(batch, height, width, layout)
        assert layout_of(shape) == layout
        assert without_channels(shape, layout) == sides
