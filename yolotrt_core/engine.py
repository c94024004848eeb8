"""Build an engine from a model: the one entry that the commands and other programs share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core import plans, reader, work
from yolotrt_core.calibration import DEFAULT_PICTURES, CalibrationData
from yolotrt_core.digest import sha256_of
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.pipeline import StepResult
from yolotrt_core.plans import Choice, GivenOptions, Plan
from yolotrt_core.registered import Registered
from yolotrt_core.registry import Registry
from yolotrt_core.serialization import from_json, invalid_field
from yolotrt_core.shapes import profile_text, shapes_text
from yolotrt_core.sources import resolve_source
from yolotrt_core.stages import FixedSizeExporter, LoweredSource, SizedExporter
from yolotrt_core.store.location import open_store, weights_cache
from yolotrt_core.store.store import Store
from yolotrt_core.text import nearest
from yolotrt_core.types import PRECISIONS, BuildRequest, EngineSpec, ModelSource, Precision, ShapeRange
from yolotrt_core.user_paths import existing_path, user_path
from yolotrt_core.writing import refuse_unwritable

if TYPE_CHECKING:
    from yolotrt_core.fastest import Pick
    from yolotrt_core.gate import Verdict
    from yolotrt_core.mixed import Trade

_log = logging.getLogger(__name__)

AUTO: Literal["auto"] = "auto"
STRIDE = 32  # every YOLOv5 needs multiples of it; P6 models need 64, which their exporter checks
MOST_PIXELS = 8192  # per side: exports of dynamic size are made to serve up to this
DEFAULT_SIZE = (640, 640)
DEFAULT_PRECISION: Precision = "fp16"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine in a folder of the user's, and how it came about.

    Attributes:
        path: the engine file; `<path>.json` beside it holds the spec. spec: what is in it.
        key: its key in the store. steps: every stage with its record and whether it ran.
        verdict: what the gate found; None for what it does not judge (fp32, `gate.check` is off, or the model is
            below fp32 already and nothing else was there to compare with).
        trade: which layers stayed in fp16 to hold `max_drop`, or None. pick: how precision `auto` chose.
    """

    path: Path
    spec: EngineSpec
    key: str
    steps: tuple[StepResult, ...]
    verdict: Verdict | None = None
    trade: Trade | None = None
    pick: Pick | None = None

    def __repr__(self) -> str:
        """Name the engine; the spec and the steps would fill pages."""
        spec = self.spec
        return (
            f"Engine(path={str(self.path)!r}, builder={spec.builder!r}, precision={spec.precision!r}, key={self.key!r})"
        )

    @property
    def from_cache(self) -> bool:
        """Whether no stage ran."""
        return all(step.from_cache for step in self.steps)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Everything a user can say about a build; the fields are the flags of `build`.

    Attributes:
        weights: file, folder, known name, or None for the embedded model.
        precision: one of types.PRECISIONS, or `auto` for the fastest that runs here and passes the gate; None: fp16,
            or what the model holds already.
        imgsz: (height, width) in pixels, one number for a square, or None for the model's own, else 640.
        batch: images per inference of a static engine, or the optimum of a dynamic one.
        dynamic: batch, height and width may vary within `profiles` (made up if none is given).
        builder, exporter, calibrator: plugin names; None chooses.
        calib_data: pictures to calibrate int8 and fp8 on: a folder, or a data set YAML (its `train`).
        calib_images: how many of them at most. calib_seed: which, if there are more.
        eval_data: pictures to judge the engine on, see `gate`. max_drop: largest loss of mAP50-95.
        flags, recipe: stage options, see `plans.GivenOptions`.
    """

    weights: str | Path | None = None
    precision: Precision | Literal["auto"] | None = None
    imgsz: tuple[int, int] | int | None = None
    batch: int = 1
    dynamic: bool = False
    profiles: tuple[ShapeRange, ...] = ()
    builder: str | None = None
    exporter: str | None = None
    calibrator: str | None = None
    calib_data: str | Path | None = None
    calib_images: int = DEFAULT_PICTURES
    calib_seed: int = 0
    eval_data: str | Path | None = None
    max_drop: float | None = None
    offline: bool = False
    flags: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def build(
    weights: str | Path | None = None,
    *,
    precision: Precision | Literal["auto"] | None = None,
    out: str | Path | None = None,
    store: str | Path | Store | None = None,
    force: bool = False,
    stages: Registry | None = None,
    **settings: Any,
) -> Engine:
    """Build an engine and put it, with its spec, in a folder.

    Args:
        weights: checkpoint file, SavedModel folder, known name (`yolov5n`), or None for the
            embedded default model.
        precision: fp32, fp16, bf16, int8, fp8 or auto; None: fp16, or what the model holds already.
        out: folder for the engine; default `./engines/NAME-PRECISION/`.
        store: artifact store or its folder; default see `default_store`.
        force: run every stage again.
        stages: plugins to use; default all that are installed.
        settings: further fields of `BuildSettings`.

    Returns:
        The engine. Nothing is computed that the store already holds.

    Raises:
        YolotrtError: see `yolotrt_core.errors`.
    """
    wanted = BuildSettings(weights=weights, precision=precision, **settings)
    folder = None if out is None else user_path(out)
    return build_engine(wanted, store=open_store(store), stages=stages or Registry.discover(), out=folder, force=force)


def build_engine(
    settings: BuildSettings, *, store: Store, stages: Registry, out: Path | None = None, force: bool = False
) -> Engine:
    """Do what `build` says, for callers that hold settings, store and plugins already."""
    # What opens engines may build them first, and most builds need no search.
    from yolotrt_core import gate, judged

    refuse_unwritable(out if out is not None else Path("engines"))
    pick = trade = None
    if settings.precision == AUTO:
        from yolotrt_core import fastest

        made, pick = fastest.pick(settings, store=store, stages=stages, force=force)
        trade = pick.trade
    else:
        made = judged.make(settings, store=store, stages=stages, force=force, is_asked_for=True)
    builder, precision = made.planned.builder, made.planned.request.precision
    name = f"{made.planned.source.name}-{precision}"
    refused = f"{name}-{builder.name}-refused"
    if not made.passed:
        from yolotrt_core import mixed

        store.set_ref(refused, made.record.key)
        if mixed.wanted(made):
            made, trade = mixed.search(made, store=store, stages=stages)
    last = made.record
    gate.refuse(made.verdict, precision, last.key)
    folder = out if out is not None else Path("engines") / name
    path = folder / f"{name}{Path(builder.stage.engine_file).suffix}"
    spec = from_json(EngineSpec, json.loads(store.read(last.outputs[work.ENGINE_SPEC_FILE].sha256)))
    _say_what_goes(path, spec)
    hand_out(store, made.engine.sha256, path)
    hand_out(store, last.outputs[work.ENGINE_SPEC_FILE].sha256, spec_path(path))
    store.set_ref(f"{name}-{builder.name}", last.key)
    for check in (r for r in made.results if r.step.kind == "parity"):  # nothing is made from it, so gc would take it
        store.set_ref(f"{name}-{builder.name}-{check.step.label}", check.record.key)
    if made.verdict is not None:
        store.set_ref(f"{name}-{builder.name}-gate", made.verdict.key)
    store.remove_ref(refused)
    return Engine(path, spec, last.key, made.results, made.verdict, trade, pick)


def _say_what_goes(path: Path, spec: EngineSpec) -> None:
    """Tell of another engine in the place of this one: whoever made it may still want it."""
    if not path.is_file():
        return
    try:
        before = from_json(EngineSpec, json.loads(spec_path(path).read_text(encoding="utf-8")))
        shapes = shapes_text(before)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        _log.warning("replaces `%s`, which has no spec of yolotrt beside it", path)
        return
    if shapes != shapes_text(spec):
        _log.warning("replaces an engine of %s by one of %s in `%s`", shapes, shapes_text(spec), path)
    elif before.engine_sha256 != spec.engine_sha256:  # weights of any training are called `best.pt`
        _log.warning("replaces an engine of other weights, options or tools in `%s`", path)


def plan_build(settings: BuildSettings, *, store: Store, stages: Registry) -> Plan:
    """Resolve the model and say which stages a build of these settings has; runs none of them."""
    if settings.precision not in (None, *PRECISIONS, AUTO):  # before anything is fetched
        raise UsageError(
            f"unknown precision `{settings.precision}`", hint=nearest(str(settings.precision), (*PRECISIONS, AUTO))
        )
    calibration = calibration_data(settings)
    if calibration is not None:
        reader.refuse_missing(calibration.where, reader.PICTURES_HINT)
    exporter, source = resolve_model(settings, stages)
    if settings.precision is None and source.holds is not None:
        _log.info("`%s` holds %s already, so that is what is built", source.path.name, source.holds)
    request = build_request(settings, source, one_size=settings.dynamic and _is_of_one_size(exporter, source))
    choice = Choice(settings.exporter, settings.builder, settings.calibrator, calibration)
    return plans.plan(stages, source, request, choice, GivenOptions(settings.flags, settings.recipe))


def resolve_model(settings: BuildSettings, stages: Registry) -> tuple[Registered, ModelSource]:
    """Find a model, and the exporter for it; the source says what precision it holds, and where no size was asked for
    the model's own.

    Raises:
        UsageError: there is no such model. PluginError: no exporter for it.
    """
    source = resolve_source(settings.weights, cache_dir=weights_cache(), offline=settings.offline)
    exporter = stages.usable("exporter", settings.exporter) if settings.exporter else stages.select_exporter(source)
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
    """Return which pictures the user gave to calibrate on, or None."""
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


def spec_path(engine: Path) -> Path:
    """Return where the spec of an engine file lies."""
    return engine.with_name(engine.name + ".json")


def read_engine_spec(engine: Path) -> EngineSpec:
    """Read the spec beside an engine and check that it belongs to it.

    Raises:
        UsageError: no engine, no spec, or a spec of another engine.
    """
    found = existing_path(engine)
    if found is None or not found.is_file():
        inside = sorted(found.glob("*.engine")) if found is not None else []
        hint = f"it is a folder: pass `{inside[0]}`" if inside else "make one with `build`"
        raise UsageError(f"there is no engine file `{engine}`", hint=hint)
    sidecar = spec_path(engine)
    damaged = "take it again from where the engine came from, or build the engine again"
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
        if (wrong := invalid_field(EngineSpec, data)) is not None:
            raise UsageError(f"`{sidecar}` is not an engine spec: {wrong}", hint=damaged)
        spec = from_json(EngineSpec, data)
    except FileNotFoundError:
        raise UsageError(
            f"`{engine}` has no spec `{sidecar.name}` beside it",
            hint="move both files together, or build again: an engine alone does not say how to feed it",
        ) from None
    except RecursionError as err:
        raise UsageError(f"`{sidecar}` is not an engine spec: it is nested too deeply", hint=damaged) from err
    except (OSError, ValueError) as err:
        raise UsageError(f"`{sidecar}` is not an engine spec: {err}", hint=damaged) from err
    if sha256_of(engine) != spec.engine_sha256:
        raise UsageError(
            f"`{engine}` is not the engine that `{sidecar.name}` describes",
            hint="the file was changed or swapped: build it again",
        )
    return spec


def hand_out(store: Store, sha256: str, path: Path) -> None:
    """Copy a stored file to a place of the user's, unless the same content is there already.

    Raises:
        ArtifactError: the place cannot be written.
    """
    try:
        if path.is_file() and sha256_of(path) == sha256:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        store.copy_out(sha256, path)
    except OSError as err:
        raise ArtifactError(
            f"cannot write `{path}`: {(err.strerror or str(err)).lower()}", hint="choose another folder with `--out`"
        ) from err
