"""Planning of a build's stages, without running any.

A key holds the digests of a stage's inputs, known only once the stage before has run or was found. So a plan names
where each input comes from, and `executor` resolves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from yolotrt_core.calibration.images import ChosenImages
from yolotrt_core.errors import PluginError, UsageError
from yolotrt_core.export import parity
from yolotrt_core.pipeline.build_options import ResolvedBuild
from yolotrt_core.pipeline.step import SPEC_FILE, Output, Plan, Step
from yolotrt_core.plugin import options, registered
from yolotrt_core.plugin.options import GivenOptions
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE, REFERENCE_FILE
from yolotrt_core.serialization import to_json
from yolotrt_core.types import BuildRequest, Json, Precision

CALIBRATE = "calibrate"
# Passes below this order run before a precision is chosen: every precision shares their artifact.
PRECISION_ORDER = 50


def plan_build(resolved: ResolvedBuild, registry: Registry) -> Plan:
    """Decide which stages a build needs, without running any or importing a framework.

    Raises:
        UsageError: unknown option or precision. PluginError: a stage lacks its tools.
        StageError: the builder cannot build this request.
    """
    request, settings, builder = resolved.request, resolved.options, resolved.builder
    precision = resolved.source_info.precision
    if request.precision not in builder.stage.precisions:
        known = ", ".join(sorted(builder.stage.precisions))
        raise UsageError(f"builder `{builder.name}` does not support {request.precision}", hint=f"it supports {known}")
    _refuse_conversion(resolved)
    registered.refuse_unavailable(resolved.exporter, resolved.exporter.stage.available())
    chosen_options = settings.resolve(builder.stage.Options, builder.name)
    builder.stage.preflight(request, chosen_options)
    if builder.stage.rounds_fp32(request, chosen_options):
        request = replace(request, exact_fp32=True)
    # Ranges are applied once: as Q/DQ nodes by a pass, or by a builder that takes them.
    takes_ranges = builder.stage.takes_ranges(request, chosen_options)
    steps = list(_shared_steps(registry, resolved, request))
    passes = [
        r for r in registry.passes() if r.stage.order >= PRECISION_ORDER and _applies(registry, r, request, settings)
    ]
    passes = [r for r in passes if not (takes_ranges and r.stage.needs_calibration)]
    chosen = None
    if precision is not None:  # types are set already, except of layers that a quantized source left in float
        passes = [r for r in passes if r.stage.order > PRECISION_ORDER or r.stage.needs_calibration]
    calibrated = precision is None and (takes_ranges or any(found.stage.needs_calibration for found in passes))
    if calibrated:
        calibrator = _calibrator(registry, resolved)
        chosen = _images(calibrator, resolved)
        steps.append(_calibrate_step(calibrator, settings, steps, chosen))
    typed = replace(request, profiles=())
    for found in passes:
        inputs = _model_inputs(_last_onnx(steps))
        if calibrated and found.stage.needs_calibration:
            inputs["ranges"] = Output(CALIBRATE, RANGES_FILE)
        steps.append(_step(found.name, found, settings, typed, _material(typed), inputs))
    inputs = _model_inputs(_last_onnx(steps))
    if calibrated and takes_ranges:
        inputs["ranges"] = Output(CALIBRATE, RANGES_FILE)
    steps.append(_step("build", builder, settings, request, _material(request), inputs))
    return Plan(resolved, request, tuple(steps), chosen)


def _refuse_conversion(resolved: ResolvedBuild) -> None:
    """Refuse to build a reduced-precision model in another precision: no pass converts it."""
    precision = resolved.source_info.precision
    if precision not in (None, resolved.request.precision):
        raise UsageError(
            f"cannot build {resolved.request.precision}: `{resolved.source.path.name}` is already {precision}",
            hint=f"use the float32 model, or build with `--precision {precision}`",
        )


def _shared_steps(registry: Registry, resolved: ResolvedBuild, request: BuildRequest) -> Iterator[Step]:
    """Yield the steps that all precisions have in common."""
    neutral, settings = _neutral(request), resolved.options
    shape = _shape_material(neutral)
    yield _step("export", resolved.exporter, settings, neutral, shape, {"source": resolved.source.sha256})
    onnx = "export"
    for found in registry.passes():
        if found.stage.order < PRECISION_ORDER and _applies(registry, found, neutral, settings):
            yield _step(found.name, found, settings, neutral, shape, _model_inputs(onnx))
            onnx = found.name
    yield _parity_step(registry, settings, neutral, onnx, resolved.source_info.precision)


def _calibrator(registry: Registry, resolved: ResolvedBuild) -> Registered:
    precision = resolved.request.precision
    if resolved.calibrator:
        return registry.usable("calibrator", resolved.calibrator)
    default = registry.default_calibrator(precision)
    if default is None:
        raise UsageError(f"{precision} has no default calibrator", hint="select one with `--calibrator`")
    return registry.usable("calibrator", default.name)


def _images(calibrator: Registered, resolved: ResolvedBuild) -> ChosenImages | None:
    """Return the calibration images; None if the calibrator needs none."""
    if not calibrator.stage.needs_images:
        return None
    if resolved.calibration is None:
        raise UsageError(
            f"calibrator `{calibrator.name}` needs images, but `--calib-data` was not given",
            hint="pass `--calib-data DIR`, or build with `--precision fp16`",
        )
    return resolved.calibration.chosen


def _calibrate_step(
    calibrator: Registered, settings: GivenOptions, before: Sequence[Step], images: ChosenImages | None
) -> Step:
    inputs = _model_inputs(_last_onnx(before))
    if images is not None:
        inputs["pictures"] = images.sha256
    request = before[0].request
    return _step(CALIBRATE, calibrator, settings, request, _shape_material(request), inputs)


def _last_onnx(steps: Sequence[Step]) -> str:
    """Return the label of the last step that writes an ONNX."""
    return next(step.label for step in reversed(steps) if step.kind in ("exporter", "pass"))


def _step(
    label: str,
    found: Registered,
    settings: GivenOptions,
    request: BuildRequest,
    material: Mapping[str, Json],
    inputs: Mapping[str, Output | str],
) -> Step:
    registered.refuse_unavailable(found, found.stage.available())
    chosen = settings.resolve(found.stage.Options, found.name)
    options.key_material(chosen, found.name)  # reads the files that options name before any stage runs
    found.stage.check_options(chosen)
    return Step(
        label=label,
        kind=found.kind,
        identity=found.identity,
        stage=found.stage,
        request=request,
        material=material,
        options=chosen,
        prefix=found.name,
        inputs=inputs,
        tools=dict(found.stage.fingerprint(chosen)),
    )


def _parity_step(
    registry: Registry, settings: GivenOptions, request: BuildRequest, onnx: str, precision: Precision | None
) -> Step:
    runner = registry.reference_runtime()
    chosen = settings.resolve(parity.ParityOptions, "parity")
    if chosen.tolerance is None:
        fitting = parity.ROUNDED.get(precision, parity.TOLERANCE) if precision else parity.TOLERANCE
        chosen = replace(chosen, tolerance=fitting)
    return Step(
        label="parity",
        kind="parity",
        identity=runner.identity_of(("yolotrt_core.export.parity", *runner.session_sources)),
        stage=runner.stage,
        request=request,
        material={},
        options=chosen,
        prefix="parity",
        inputs={**_model_inputs(onnx), "reference": Output("export", REFERENCE_FILE)},
        tools=dict(runner.stage.fingerprint(runner.stage.Options())),
    )


def _model_inputs(label: str) -> dict[str, Output | str]:
    return {"onnx": Output(label, ONNX_FILE), "spec": Output(label, SPEC_FILE)}


def _applies(registry: Registry, found: Registered, request: BuildRequest, settings: GivenOptions) -> bool:
    """Return whether a pass applies; one that fails is skipped, unless the user has set an option of it."""
    chosen = settings.resolve(found.stage.Options, found.name)
    try:
        return bool(found.stage.applies(request, chosen))
    except PluginError as err:
        if chosen != found.stage.Options():
            raise
        registry.warn_of_skipped(found, err)
        return False


def _neutral(request: BuildRequest) -> BuildRequest:
    """Return the request of the stages that all precisions share: fp32, at the optimum of the first profile."""
    if request.profiles:
        batch, height, width = request.profiles[0].opt
        request = replace(request, batch=batch, height=height, width=width)
    return replace(request, precision="fp32", profiles=(), exact_fp32=False)


def _shape_material(request: BuildRequest) -> dict[str, Json]:
    return {k: v for k, v in _material(request).items() if k not in ("precision", "profiles")}


def _material(request: BuildRequest) -> dict[str, Json]:
    shown = to_json(request)
    assert isinstance(shown, dict)
    return shown
