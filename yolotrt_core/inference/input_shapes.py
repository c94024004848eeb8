"""Input shapes: validation for all runners, formatting and parsing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.options import Format
from yolotrt_core.types import BuildRequest, EngineSpec, ShapeRange, Task, fit_of, without_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray


def refuse_unfit(images: NDArray[Any], spec: EngineSpec) -> None:
    """Check that the engine accepts a batch.

    Args:
        images: argument of `Session.infer`. spec: spec of the engine.

    Raises:
        UsageError: not float32, or a shape outside the static dimensions or profiles.
    """
    expected = spec.model.inputs[0].shape
    accepted = f"float32 {shape_text(expected)}"
    if spec.profiles:
        accepted += " with (batch, height, width) from " + " or from ".join(_range(p) for p in spec.profiles)
    found = f"{getattr(images, 'dtype', type(images).__name__)} {shape_text(getattr(images, 'shape', ()))}"
    fits = (
        str(getattr(images, "dtype", "")) == "float32"
        and images.ndim == len(expected)
        and all(have == want for have, want in zip(images.shape, expected, strict=True) if isinstance(want, int))
        and min(images.shape) > 0
    )
    layout = spec.model.layout
    if fits and spec.profiles:
        size = without_channels(images.shape, layout)
        fits = any(_within(size, profile) for profile in spec.profiles)
    if not fits:
        raise UsageError(f"the engine accepts {accepted}, found {found}")
    step = spec.model.size_step
    for side in without_channels(images.shape, layout)[1:]:
        if side % step:
            raise UsageError(f"height and width must be multiples of {step}, found {found}")


def refuse_sizes(request: BuildRequest, step: int) -> None:
    """Check the requested height and width, and those of all profiles.

    Args:
        step: of the model (`ModelSpec.size_step`).

    Raises:
        UsageError: a size that is not a multiple of `step`.
    """
    for height, width in _sizes(request):
        if height % step or width % step:
            near = [max(step, round(side / step) * step) for side in (height, width)]
            raise UsageError(
                f"this model's height and width must be multiples of {step} pixels, found {height} x {width}",
                hint=f"the nearest is `{near[0]},{near[1]}`",
            )


def refuse_shape(request: BuildRequest, task: Task) -> None:
    """Check that the requested sizes have the shape of the image's part that the network is given.

    Raises:
        UsageError: a size other than a square, for a network that is given the central square.
    """
    for height, width in _sizes(request):
        if fit_of(task) == "crop" and height != width:
            raise UsageError(
                f"this model is given the central square of an image, but the size {height} x {width} was requested",
                hint=f"pass one side, such as `--imgsz {min(height, width)}`",
            )


def _sizes(request: BuildRequest) -> list[tuple[int, int]]:
    """Return the (height, width) of the request and of all profiles."""
    sizes = {(request.height, request.width)}
    sizes |= {shape[1:] for profile in request.profiles for shape in (profile.min, profile.opt, profile.max)}
    return sorted(sizes)


def shape_text(shape: Sequence[int | str]) -> str:
    """Format a tensor's shape, e.g. `(batch, 3, 640, 640)`."""
    return f"({', '.join(map(str, shape))})"


def profile_text(profile: ShapeRange) -> str:
    """Format a profile as in options, e.g. `1x320x320:1x640x640:8x640x640`."""
    return ":".join("x".join(map(str, shape)) for shape in (profile.min, profile.opt, profile.max))


def shapes_text(spec: EngineSpec) -> str:
    """Format the shapes an engine accepts, e.g. `batch 1, 640x640`."""
    if spec.profiles:
        return " and ".join(f"batch and size {_range(p)}" for p in spec.profiles)
    batch, height, width = without_channels(spec.model.inputs[0].shape, spec.model.layout)
    return f"batch {batch}, {height}x{width}"


def _within(size: tuple[int, int, int], profile: ShapeRange) -> bool:
    return all(low <= have <= high for low, have, high in zip(profile.min, size, profile.max, strict=True))


def _range(profile: ShapeRange) -> str:
    return f"{'x'.join(map(str, profile.min))} to {'x'.join(map(str, profile.max))}"


def _size(value: Any) -> tuple[int, int]:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    sides = re.fullmatch(r" *([0-9]{1,6})(?: *, *([0-9]{1,6}))? *", text)
    if sides is None:
        raise ValueError
    return int(sides[1]), int(sides[2] or sides[1])


def _profile(value: Any) -> ShapeRange:
    shape = "([0-9]{1,6})x([0-9]{1,6})x([0-9]{1,6})"
    found = re.fullmatch(f"{shape}:{shape}:{shape}", str(value))
    if found is None:
        raise ValueError
    n = [int(g) for g in found.groups()]
    return ShapeRange((n[0], n[1], n[2]), (n[3], n[4], n[5]), (n[6], n[7], n[8]))


# (height, width); a recipe may give a number or a list.
IMAGE_SIZE = Format("SIZE", "a side or height,width in pixels, for example 640 or 480,640", _size)
PROFILE = Format(
    "MIN:OPT:MAX", "MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH", _profile, hint="for example 1x320x320:4x640x640:8x640x640"
)
