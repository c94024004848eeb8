"""Optimization profiles: input shapes of a dynamic engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference.input_shapes import profile_text
from yolotrt_core.types import BuildRequest, Layout, ShapeRange, layout_of, without_channels
from yolotrt_tensorrt.library import Library

if TYPE_CHECKING:
    import tensorrt

_AXES: dict[Layout, tuple[str, ...]] = {
    "nchw": ("batch", "channels", "height", "width"),
    "nhwc": ("batch", "height", "width", "channels"),
}


def add_profiles(
    library: Library,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    request: BuildRequest,
) -> None:
    """Add the request's profiles to a dynamic network, or check the shape of a static one.

    TensorRT reports most mistakes only as a failed build, so all are checked first.

    Raises:
        UsageError: the network's fixed axes differ from the request.
        StageError: TensorRT refuses a profile.
    """
    if network.num_inputs != 1:
        names = [network.get_input(i).name for i in range(network.num_inputs)]
        raise UsageError(f"expected a network with one input, found {len(names)}: {', '.join(names)}")
    entry = network.get_input(0)
    shape = tuple(entry.shape)
    if len(shape) != 4:
        raise UsageError(f"expected input `{entry.name}` to be {' x '.join(_AXES['nchw'])}, found {shape}")
    if -1 not in shape:
        _check_static(entry.name, shape, request)
        return
    if not request.profiles:
        free = ", ".join(axis for axis, n in zip(_AXES[layout_of(shape)], shape, strict=True) if n == -1)
        raise UsageError(
            f"input `{entry.name}` is free in {free}, but no profile was given", hint="pass `--dynamic on`"
        )
    for asked in request.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(
            entry.name, *(_complete_shape(shape, asked, which, entry.name) for which in ("min", "opt", "max"))
        )
        with library.collecting() as messages:
            index = config.add_optimization_profile(profile)
        if not profile or index < 0:
            raise library.failure(f"add the profile {profile_text(asked)}", messages)


def _check_static(name: str, shape: tuple[int, ...], request: BuildRequest) -> None:
    if request.profiles:
        raise UsageError(
            f"input `{name}` has the fixed shape {'x'.join(map(str, shape))}, but a dynamic engine was requested",
            hint="export the model with `--dynamic on`, or build without `--dynamic` and `--profile`",
        )
    asked = _shape_like(shape, request.batch, request.height, request.width)
    if shape != asked:
        raise UsageError(
            f"input `{name}` has the fixed shape {'x'.join(map(str, shape))}, "
            f"but {'x'.join(map(str, asked))} was requested",
            hint="`--batch` and `--imgsz` must match the model",
        )


def _complete_shape(shape: tuple[int, ...], asked: ShapeRange, which: str, name: str) -> tuple[int, ...]:
    requested = _shape_like(shape, *getattr(asked, which))
    if -1 in requested:
        raise StageError(f"input `{name}` has free channels, which a profile cannot set")
    for axis, fixed, value in zip(_AXES[layout_of(shape)], shape, requested, strict=True):
        if fixed not in (-1, value):
            raise UsageError(
                f"input `{name}` has the fixed {axis} {fixed}, but profile {profile_text(asked)} has {value}",
                hint=f"use `--profile {profile_text(_fix_axes(shape, asked))}`",
            )
    return requested


def _fix_axes(shape: tuple[int, ...], asked: ShapeRange) -> ShapeRange:
    """Return a profile with an input's fixed axes."""
    fixed = without_channels(shape, layout_of(shape))

    def kept(sides: tuple[int, int, int]) -> tuple[int, int, int]:
        batch, height, width = (side if own == -1 else own for own, side in zip(fixed, sides, strict=True))
        return batch, height, width

    return ShapeRange(kept(asked.min), kept(asked.opt), kept(asked.max))


def _shape_like(shape: tuple[int, ...], batch: int, height: int, width: int) -> tuple[int, ...]:
    """Return a shape with an input's layout and channels."""
    if layout_of(shape) == "nhwc":
        return batch, height, width, shape[3]
    return batch, shape[1], height, width
