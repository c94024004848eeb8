"""Build settings, and the model, stages and images they resolve to."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from yolotrt_core.calibration.images import DEFAULT_IMAGES, CalibrationData, CalibrationImages, ImageDigests
from yolotrt_core.console.text import counted, nearest
from yolotrt_core.datasets import reader
from yolotrt_core.datasets.class_map import class_map_from
from yolotrt_core.datasets.dataset import DataSet
from yolotrt_core.errors import UsageError
from yolotrt_core.export import parity
from yolotrt_core.export.model_source import resolve_source
from yolotrt_core.inference.image_options import ImageOptions
from yolotrt_core.inference.input_shapes import IMAGE_SIZE, PROFILE, profile_text
from yolotrt_core.plugin.options import MANY, Format, GivenOptions, option
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import SourceInfo
from yolotrt_core.types import MIN_SIZE_STEP, PRECISIONS, BuildRequest, ModelSource, Precision, ShapeRange, Task

_log = logging.getLogger(__name__)

AUTO: Literal["auto"] = "auto"

# Titles of groups of options in help.
CALIBRATION = "Calibration"

ACCURACY_GATE = "Accuracy gate"

MAX_PIXELS = 8192  # per side; dynamic exports support up to this

DEFAULT_SIZE = (640, 640)

_IMAGE_SIZE = replace(IMAGE_SIZE, hint=f"each from {MIN_SIZE_STEP} to {MAX_PIXELS}, a multiple of {MIN_SIZE_STEP}")

CLASS_MAP = Format(
    "FILE|NAME=NAME[,...]", "a file, or class names of the data set and the model as NAME=NAME[,NAME=NAME]",
    class_map_from,
)  # fmt: skip

DEFAULT_PRECISION: Precision = "fp16"


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """User settings of a build: the flags of `build` and the keys of recipe table [build].

    Attributes:
        imgsz: (height, width), one number for a square, or None. profiles: generated for a dynamic engine without any.
        flags, recipe: stage options, see `GivenOptions`.
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
    dynamic: bool = option(False, common=True, help="Dynamic batch, height and width within the profiles")
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
    class_map: Mapping[str, str] | None = option(
        None, group=ACCURACY_GATE, format=CLASS_MAP, default_text="by name",
        help="Classes of labelled images that the model has by another name, as NAME=NAME; NAME=- excludes boxes",
    )  # fmt: skip
    allow_unlabeled: bool = option(
        False, group=ACCURACY_GATE, switch=True,
        help="Take images without a label file as images without objects, also where most have none",
    )  # fmt: skip
    max_drop: float | None = option(
        None, group=ACCURACY_GATE, minimum=0, maximum=1, default_text="0.005",
        help="Maximum loss of mAP50-95 against fp32 on labelled --eval-data; if given, int8 and fp8 engines keep the "
        "fewest layers in fp16 that meet it",
    )  # fmt: skip
    offline: bool = option(False, switch=True, help="No network access")
    flags: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def options(self) -> GivenOptions:
        """The stage options."""
        return GivenOptions(self.flags, self.recipe)


class ResolvedModel(NamedTuple):
    """A model, its exporter, and what the exporter reports of it."""

    exporter: Registered
    source: ModelSource
    info: SourceInfo


@dataclass(frozen=True, slots=True)
class ResolvedBuild:
    """Everything a build depends on, resolved once; candidates of a search are copies with another request or options.

    Attributes:
        source: the model. source_info: what its exporter reports of it.
        request: what is built. options: stage options as the user gave them.
        calibrator: the name the user gave, or None.
        calibration: images to calibrate on, or None. digests: SHA-256 of all images that the build looks at.
        read_eval_data: reads the evaluation data for a model of these class names and this task, once; None
            without any.
        max_drop: maximum loss of mAP50-95, or None.
    """

    source: ModelSource
    source_info: SourceInfo
    exporter: Registered
    builder: Registered
    request: BuildRequest
    options: GivenOptions = field(default_factory=GivenOptions)
    calibrator: str | None = None
    calibration: CalibrationImages | None = None
    digests: ImageDigests = field(default_factory=ImageDigests)
    read_eval_data: Callable[[tuple[str, ...], Task], DataSet] | None = None
    max_drop: float | None = None

    @property
    def image_bits(self) -> int:
        """See `ImageOptions`."""
        options: ImageOptions = self.options.resolve(ImageOptions, "image")
        return options.bits


def resolve(settings: BuildSettings, registry: Registry, model: ResolvedModel | None = None) -> ResolvedBuild:
    """Find model, exporter and builder of a build, and check the request; runs no stage.

    Args:
        model: what `resolve_model` returned for these settings, if that was called already.

    Raises:
        UsageError: no such model or images, an invalid setting. PluginError: a stage is missing or lacks its tools.
    """
    if settings.precision not in (None, *PRECISIONS, AUTO):  # before anything is fetched
        raise UsageError(
            f"unknown precision `{settings.precision}`", hint=nearest(str(settings.precision), (*PRECISIONS, AUTO))
        )
    if settings.calib_data is not None:
        reader.refuse_missing(settings.calib_data, reader.IMAGES_HINT)
    exporter, source, info = model or resolve_model(settings, registry)
    if settings.precision is None and info.precision is not None:
        _log.info("`%s` is already %s; building %s", source.path.name, info.precision, info.precision)
    request = build_request(settings, source, info)
    refuse_unchecked(source, info, registry)
    builder = (
        registry.usable("builder", settings.builder) if settings.builder else registry.default_builder(to_run=False)
    )
    digests = ImageDigests()
    calibration = read_eval_data = None
    if settings.calib_data is not None:
        bits = settings.options.resolve(ImageOptions, "image").bits
        chosen = CalibrationData(settings.calib_data, settings.calib_images, settings.calib_seed, bits)
        calibration = CalibrationImages(chosen, digests)
    if settings.eval_data is not None:
        read_eval_data = functools.cache(functools.partial(_read_eval_data, settings, settings.eval_data))
    return ResolvedBuild(
        source=source,
        source_info=info,
        exporter=exporter,
        builder=builder,
        request=request,
        options=settings.options,
        calibrator=settings.calibrator,
        calibration=calibration,
        digests=digests,
        read_eval_data=read_eval_data,
        max_drop=settings.max_drop,
    )


def _read_eval_data(settings: BuildSettings, where: str | Path, labels: tuple[str, ...], task: Task) -> DataSet:
    options = reader.LabelOptions.of_task(task, settings.class_map, settings.allow_unlabeled)
    data = reader.read(where, labels, options=options, labels_needed=settings.max_drop is not None)
    if data.boxes and options.whole_images:
        _log.info("eval data %s with a class each", counted(len(data.images), "image"))
    elif data.boxes:
        boxes, backgrounds = counted(data.boxes, "box"), data.backgrounds_text
        _log.info("eval data %s, %s; %s", counted(len(data.images), "image"), boxes, backgrounds)
    return data


def resolve_model(settings: BuildSettings, registry: Registry) -> ResolvedModel:
    """Find a model and its exporter, and inspect the model.

    Raises:
        UsageError: unknown model. PluginError: no exporter for it.
    """
    source = resolve_source(settings.weights, offline=settings.offline)
    exporter = registry.usable("exporter", settings.exporter) if settings.exporter else registry.select_exporter(source)
    info = exporter.stage.inspect(source) if exporter.stage.available().ok else SourceInfo()
    return ResolvedModel(exporter, source, info)


def refuse_unchecked(source: ModelSource, info: SourceInfo, registry: Registry) -> None:
    """Refuse a model of a precision that the parity check cannot run; it supports all Q/DQ nodes.

    Raises:
        UsageError: names the precision of the model. PluginError: the builder of the parity check is not installed.
    """
    if info.precision not in parity.ROUNDED:
        return
    runner = registry.reference_runtime()
    if info.precision not in runner.stage.precisions:
        raise UsageError(
            f"`{source.path.name}` is already {info.precision}, which {runner.name}, used for the parity check, "
            "does not support",
            hint=f"use the float32 model and build it with `--precision {info.precision}`",
        )


def build_request(settings: BuildSettings, source: ModelSource, info: SourceInfo) -> BuildRequest:
    """Check the user's settings and fill in defaults.

    Raises:
        UsageError: a size that is not a multiple of 32, a profile out of order, precision `auto`.
    """
    if settings.precision == AUTO:
        raise UsageError("precision `auto` is not allowed here", hint=f"use one of {', '.join(PRECISIONS)}")
    height, width = _size(settings.imgsz) or source.imgsz or info.imgsz or DEFAULT_SIZE
    if not isinstance(settings.batch, int) or settings.batch < 1:  # Python callers may pass any type
        raise UsageError(f"`--batch` expects a whole number of at least 1, found `{settings.batch}`")
    profiles = settings.profiles
    if settings.dynamic and not profiles:
        sides = (height, width)
        minimum = (
            sides
            if info.fixed_size
            else tuple(max(MIN_SIZE_STEP, side // 2 // MIN_SIZE_STEP * MIN_SIZE_STEP) for side in sides)
        )
        profiles = (
            ShapeRange(
                (1, minimum[0], minimum[1]), (settings.batch, height, width), (max(8, settings.batch), height, width)
            ),
        )
    for shape in ((1, height, width), *(s for p in profiles for s in (p.min, p.opt, p.max))):
        for side in shape[1:]:
            if side > MAX_PIXELS:
                raise UsageError(f"height and width must be {MIN_SIZE_STEP} to {MAX_PIXELS} pixels, found {side}")
            if side < MIN_SIZE_STEP or side % MIN_SIZE_STEP:
                raise UsageError(
                    f"height and width must be multiples of {MIN_SIZE_STEP}, found {side}"
                    + (f"; {MIN_SIZE_STEP} is the minimum" if side < MIN_SIZE_STEP else ""),
                    hint=f"the nearest is {max(MIN_SIZE_STEP, round(side / MIN_SIZE_STEP) * MIN_SIZE_STEP)}",
                )
    for profile in profiles:
        ordered = all(a <= b <= c for a, b, c in zip(profile.min, profile.opt, profile.max, strict=True))
        if not ordered or profile.min[0] < 1:
            raise UsageError(f"profile `{profile_text(profile)}` is not in the order MIN:OPT:MAX on every axis")
    return BuildRequest(
        precision=settings.precision or info.precision or DEFAULT_PRECISION,
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
            f"`imgsz` must be (height, width) in pixels, or one number for a square, found {imgsz!r}",
            hint="for example `imgsz=(480, 640)` or `imgsz=640`",
        )
    return sides[0], sides[1]
