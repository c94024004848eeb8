"""Build settings, and the plan they resolve to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.build import plan
from yolotrt_core.build.plan import Choice
from yolotrt_core.build.step import Plan
from yolotrt_core.calibration.images import DEFAULT_IMAGES, CalibrationData
from yolotrt_core.console.text import nearest
from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError
from yolotrt_core.export.model_source import resolve_source
from yolotrt_core.inference.input_shapes import IMAGE_SIZE, PROFILE, profile_text
from yolotrt_core.plugin.given_options import GivenOptions
from yolotrt_core.plugin.options import MANY, option
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import FixedSizeExporter, LoweredSource, SizedExporter
from yolotrt_core.store.location import weights_cache
from yolotrt_core.store.store import Store
from yolotrt_core.types import PRECISIONS, BuildRequest, ModelSource, Precision, ShapeRange

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)

AUTO: Literal["auto"] = "auto"

# Titles of groups of options in help.
CALIBRATION = "Calibration"

ACCURACY_GATE = "Accuracy gate"

STRIDE = 32  # every YOLOv5 needs multiples of it; P6 models need 64, which their exporter checks

MOST_PIXELS = 8192  # per side: exports of dynamic size are made to serve up to this

DEFAULT_SIZE = (640, 640)

_IMAGE_SIZE = replace(IMAGE_SIZE, hint=f"each from {STRIDE} to {MOST_PIXELS}, a multiple of {STRIDE}")

DEFAULT_PRECISION: Precision = "fp16"


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Everything a user can say about a build: the flags of `build` and the keys of recipe table [build].

    Attributes:
        imgsz: (height, width), one number for a square, or None. profiles: made up for a dynamic engine without any.
        flags, recipe: stage options, see `plans.GivenOptions`.
    """

    weights: str | Path | None = option(
        None, common=True, metavar="FILE|NAME", default_text="the embedded model",
        help="Model: a checkpoint, an ONNX file, a SavedModel folder, or a known name",
    )  # fmt: skip
    precision: Precision | Literal["auto"] | None = option(
        None, common=True, metavar="TYPE", default_text="fp16, or that of the source ONNX",
        help="Engine precision; auto: the fastest, of all builders, that passes the accuracy gate",
    )  # fmt: skip
    imgsz: tuple[int, int] | int | None = option(
        None, common=True, format=_IMAGE_SIZE, default_text="the model's own, else 640",
        help="Network input in pixels: 640, or height,width, e.g. 480,640",
    )  # fmt: skip
    batch: int = option(1, common=True, minimum=1, maximum=MANY, help="Images per inference")
    dynamic: bool = option(False, common=True, help="Let batch, height and width vary within the profiles")
    profiles: tuple[ShapeRange, ...] = option(
        (), format=PROFILE, name="profile", repeatable=True, default_text="batch 1 to 8, half to full size",
        help="Shapes of a dynamic engine, each BATCHxHEIGHTxWIDTH; repeatable, implies --dynamic on",
    )  # fmt: skip
    builder: str | None = option(
        None, common=True, metavar="NAME", default_text="tensorrt if its library is installed, else onnxruntime",
        help="Builder plugin",
    )  # fmt: skip
    exporter: str | None = option(
        None, metavar="NAME", default_text="the one that recognises the model", help="Exporter plugin"
    )
    calibrator: str | None = option(
        None, group=CALIBRATION, metavar="NAME", default_text="percentile for int8, minmax for fp8",
        help="Calibrator plugin, for int8 and fp8",
    )  # fmt: skip
    calib_data: str | Path | None = option(
        None, group=CALIBRATION, common=True, metavar="DIR|FILE", default_text="none",
        help="Calibration images: a folder, or a data set YAML, whose `train` part is used",
    )  # fmt: skip
    calib_images: int = option(
        DEFAULT_IMAGES, group=CALIBRATION, minimum=1, maximum=MANY, help="Maximum number of calibration images"
    )
    calib_seed: int = option(
        0, group=CALIBRATION, minimum=0, maximum=MANY, help="Seed of the choice of calibration images if there are more"
    )
    eval_data: str | Path | None = option(
        None, group=ACCURACY_GATE, common=True, metavar="DIR|FILE",
        default_text="the calibration images, else the bundled one",
        help="Images that engines are validated on: a folder, data set YAML or COCO JSON",
    )  # fmt: skip
    max_drop: float | None = option(
        None, group=ACCURACY_GATE, minimum=0, maximum=1, default_text="0.005",
        help="Maximum loss of mAP50-95 against fp32 on labelled --eval-data; if given, int8 and fp8 engines keep the "
        "fewest layers in fp16 that meet it",
    )  # fmt: skip
    offline: bool = option(False, switch=True, help="Never use the network")
    flags: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def plan_build(settings: BuildSettings, *, store: Store, registry: Registry) -> Plan:
    """Resolve the model and say which stages a build of these settings has; runs none of them."""
    if settings.precision not in (None, *PRECISIONS, AUTO):  # before anything is fetched
        raise UsageError(
            f"unknown precision `{settings.precision}`", hint=nearest(str(settings.precision), (*PRECISIONS, AUTO))
        )
    calibration = calibration_data(settings)
    if calibration is not None:
        reader.refuse_missing(calibration.where, reader.IMAGES_HINT)
    exporter, source = resolve_model(settings, registry)
    if settings.precision is None and source.holds is not None:
        _log.info("`%s` holds %s already, so that is what is built", source.path.name, source.holds)
    request = build_request(settings, source, one_size=settings.dynamic and _is_of_one_size(exporter, source))
    choice = Choice(settings.exporter, settings.builder, settings.calibrator, calibration)
    return plan.plan(registry, source, request, choice, GivenOptions(settings.flags, settings.recipe))


def resolve_model(settings: BuildSettings, registry: Registry) -> tuple[Registered, ModelSource]:
    """Find a model, and the exporter for it; the source says what precision it holds, and where no size was asked for
    the model's own.

    Raises:
        UsageError: there is no such model. PluginError: no exporter for it.
    """
    source = resolve_source(settings.weights, cache_dir=weights_cache(), offline=settings.offline)
    exporter = registry.usable("exporter", settings.exporter) if settings.exporter else registry.select_exporter(source)
    if settings.imgsz is None and source.imgsz is None:
        source = replace(source, imgsz=_native_size(exporter, source))
    if exporter.stage.available().ok and isinstance(exporter.stage, LoweredSource):
        source = replace(source, holds=exporter.stage.held_precision(source))
    return exporter, source


def _native_size(exporter: Registered, source: ModelSource) -> tuple[int, int] | None:
    if not exporter.stage.available().ok or not isinstance(exporter.stage, SizedExporter):
        return None
    return exporter.stage.native_size(source)


def _is_of_one_size(exporter: Registered, source: ModelSource) -> bool:
    """Say whether the ONNX will take one height and width: a profile that nobody asked for must not leave them."""
    if not exporter.stage.available().ok:
        return False
    if isinstance(exporter.stage, FixedSizeExporter):
        return exporter.stage.has_fixed_size(source)
    return _native_size(exporter, source) is not None


def calibration_data(settings: BuildSettings) -> CalibrationData | None:
    """Return which images the user gave to calibrate on, or None."""
    if settings.calib_data is None:
        return None
    return CalibrationData(settings.calib_data, settings.calib_images, settings.calib_seed)


def build_request(settings: BuildSettings, source: ModelSource, *, one_size: bool = False) -> BuildRequest:
    """Check the user's settings and fill in what was left open.

    Args:
        one_size: the profile of a dynamic engine, where none is given, leaves height and width as they are.

    Raises:
        UsageError: a size that is no multiple of 32, a profile out of order, precision `auto`.
    """
    if settings.precision == AUTO:
        raise UsageError("precision `auto` is many builds, not one", hint=f"name one of {', '.join(PRECISIONS)}")
    height, width = _size(settings.imgsz) or source.imgsz or DEFAULT_SIZE
    if not isinstance(settings.batch, int) or settings.batch < 1:  # a program may have read it from a text
        raise UsageError(f"`--batch` expects a whole number of at least 1, found `{settings.batch}`")
    profiles = settings.profiles
    if settings.dynamic and not profiles:
        sides = (height, width)
        least = sides if one_size else tuple(max(STRIDE, side // 2 // STRIDE * STRIDE) for side in sides)
        profiles = (
            ShapeRange(
                (1, least[0], least[1]), (settings.batch, height, width), (max(8, settings.batch), height, width)
            ),
        )
    for shape in ((1, height, width), *(s for p in profiles for s in (p.min, p.opt, p.max))):
        for side in shape[1:]:
            if side > MOST_PIXELS:
                raise UsageError(f"height and width must be {STRIDE} to {MOST_PIXELS} pixels, found {side}")
            if side < STRIDE or side % STRIDE:
                raise UsageError(
                    f"height and width must be multiples of {STRIDE}, found {side}"
                    + (f"; {STRIDE} is the least" if side < STRIDE else ""),
                    hint=f"the nearest is {max(STRIDE, round(side / STRIDE) * STRIDE)}",
                )
    for profile in profiles:
        ordered = all(a <= b <= c for a, b, c in zip(profile.min, profile.opt, profile.max, strict=True))
        if not ordered or profile.min[0] < 1:
            raise UsageError(f"profile `{profile_text(profile)}` is not in the order MIN:OPT:MAX on every axis")
    return BuildRequest(
        precision=settings.precision or source.holds or DEFAULT_PRECISION,
        batch=settings.batch,
        height=height,
        width=width,
        dynamic=bool(profiles),
        profiles=profiles,
    )


def _size(imgsz: Any) -> tuple[int, int] | None:
    """Return `BuildSettings.imgsz` as (height, width)."""
    if imgsz is None:
        return None
    sides = tuple(imgsz) if isinstance(imgsz, (tuple, list)) else (imgsz, imgsz)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise UsageError(
            f"`imgsz` is (height, width) in pixels, or one number for a square, found {imgsz!r}",
            hint="as `imgsz=(480, 640)` or `imgsz=640`",
        )
    return sides[0], sides[1]
