"""Automatic precision: the fastest engine, of all that run on this machine, that passes the accuracy gate."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from yolotrt_core.errors import GateError, PluginError, StageError, UsageError
from yolotrt_core.evaluation.gate_options import GateOptions
from yolotrt_core.pipeline.build_options import BuildSettings, refuse_unchecked, resolve, resolve_model
from yolotrt_core.plugin.registered import Registered, refuse_unavailable
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.tuning import mixed_precision
from yolotrt_core.tuning.engine_timing import times_ms
from yolotrt_core.tuning.mixed_precision import MixedPrecisionResult
from yolotrt_core.tuning.validated_build import ValidatedBuild, build_and_validate, check_settings
from yolotrt_core.types import PRECISIONS, Precision

_log = logging.getLogger(__name__)

# The more precise of two engines wins unless the other is faster by more than the noise of an interleaved run.
_FASTER = 0.98
_CALIBRATED: tuple[Precision, ...] = ("int8", "fp8")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A builder and precision, and its result.

    Attributes:
        ms: of one image, frames to boxes, in the run in which it was last compared; None if it was
            not timed. passed: whether it passed the gate; None if it was not built.
        note: result of the gate, or why it was not built.
    """

    builder: str
    precision: Precision
    kept: int
    ms: float | None
    passed: bool | None
    note: str


@dataclass(frozen=True, slots=True)
class AutoPrecisionResult:
    """The selected engine and all candidates.

    Attributes:
        options: all of them, in the order they were tried. text: summary in one line.
        mixed: the search that found the selected engine, if it is of mixed precision.
    """

    builder: str
    precision: Precision
    options: tuple[Candidate, ...]
    text: str
    mixed: MixedPrecisionResult | None = None


def select(
    settings: BuildSettings, *, store: Store, registry: Registry, force: bool = False
) -> tuple[ValidatedBuild, AutoPrecisionResult]:
    """Build, validate and time every precision on every builder that runs on this machine; select the fastest.

    Args:
        settings: without regard to their precision; a named builder is the only candidate.

    Raises:
        UsageError: the gate is off, or the model or data cannot be used.
        PluginError: no builder can run an engine on this machine. GateError: no engine passed.
    """
    gate: GateOptions = settings.options.resolve(GateOptions, "gate")
    if not gate.check:
        raise UsageError(
            "`--precision auto` requires the accuracy gate (`--gate-check on`)",
            hint="`build` with the gate first, then pass the file with `--engine`",
        )
    model = resolve_model(settings, registry)
    refuse_unchecked(model.source, model.info, registry)
    given = model.info.precision
    pairs = list(_pairs(settings, registry, (given,) if given else PRECISIONS))
    if not pairs:
        raise UsageError(f"no builder on this machine supports {given}, the source precision", hint="see `doctor`")
    check_settings(settings)
    first = replace(settings, builder=pairs[0][0].name, precision=pairs[0][1])
    resolved = resolve(first, registry, model)
    made: list[ValidatedBuild] = []
    skipped: list[Candidate] = []
    for builder, precision in pairs:
        reason = None if given else _skip_reason(settings, precision)
        if reason is None:
            try:
                candidate = replace(resolved, builder=builder, request=replace(resolved.request, precision=precision))
                made.append(build_and_validate(candidate, store=store, registry=registry, force=force))
                continue
            except (StageError, PluginError) as err:
                reason = err.message
        _log.info("auto      skipped %s %s: %s", builder.name, precision, reason)
        skipped.append(Candidate(builder.name, precision, 0, None, None, reason))
    passing = [m for m in made if m.passed]
    if not passing:
        raise GateError("no engine passed the gate: " + "; ".join(_note(m) for m in made), hint="see the log above")
    ms: Mapping[str, float] = times_ms(made, store=store, registry=registry)
    best = _fastest(passing, ms)
    mixed: MixedPrecisionResult | None = None
    for failed in made:
        # Layers in fp16 make it no faster, so a search cannot help one that is too slow already.
        if mixed_precision.is_search_needed(failed) and ms[failed.record.key] < _FASTER * ms[best.record.key]:
            best, mixed, ms = _search_mixed(failed, best, mixed, ms, store=store, registry=registry)
    options = [*(_option(m, ms) for m in made), *skipped]
    if mixed is not None:
        options.append(replace(_option(best, ms), kept=len(mixed.kept)))
    for option in options:
        if option.ms is not None:
            _log.info(
                "auto      %s %s: %.3f ms per image; %s", option.builder, option.precision, option.ms, option.note
            )
    text = _summary(best, mixed, ms)
    _log.info("auto      %s", text)
    return best, AutoPrecisionResult(
        best.planned.resolved.builder.name, best.planned.request.precision, tuple(options), text, mixed
    )


def _pairs(
    settings: BuildSettings, registry: Registry, precisions: Sequence[Precision]
) -> Iterator[tuple[Registered, Precision]]:
    """Yield the candidates, the most precise first."""
    if settings.builder:
        named = registry.usable("builder", settings.builder)
        refuse_unavailable(named, named.stage.runnable())
        builders = [named]
    else:
        registry.default_builder(to_run=True)  # raises with the reason of each builder
        builders = [b for b in registry.builders() if registry.able(b, to_run=True).ok]
    for precision in precisions:
        for builder in builders:
            if precision in builder.stage.precisions:
                yield builder, precision


def _skip_reason(settings: BuildSettings, precision: Precision) -> str | None:
    if precision in _CALIBRATED and settings.calib_data is None and settings.calibrator is None:
        return "no calibration images (`--calib-data`)"
    return None


def _search_mixed(
    failed: ValidatedBuild,
    best: ValidatedBuild,
    mixed: MixedPrecisionResult | None,
    ms: Mapping[str, float],
    *,
    store: Store,
    registry: Registry,
) -> tuple[ValidatedBuild, MixedPrecisionResult | None, Mapping[str, float]]:
    """Search mixed precision for a failed engine, and compare the result with the best so far."""
    try:
        searched, found = mixed_precision.search(failed, store=store, registry=registry)
    except GateError as err:
        _log.info("auto      %s", err.message)
        return best, mixed, ms
    again = {**ms, **times_ms([best, searched], store=store, registry=registry)}
    if _fastest([best, searched], again) is searched:
        return searched, found, again
    return best, mixed, again


def _fastest(engines: Sequence[ValidatedBuild], ms: Mapping[str, float]) -> ValidatedBuild:
    best = engines[0]
    for candidate in engines[1:]:
        if ms[candidate.record.key] < _FASTER * ms[best.record.key]:
            best = candidate
    return best


def _option(made: ValidatedBuild, ms: Mapping[str, float]) -> Candidate:
    note = made.gate.text if made.gate else "reference"
    if made.gate is None and made.planned.resolved.source_info.precision is not None:
        note = "the source model, unchanged"
    request = made.planned.request
    return Candidate(
        made.planned.resolved.builder.name, request.precision, 0, ms.get(made.record.key), made.passed, note
    )


def _note(made: ValidatedBuild) -> str:
    return (
        f"{made.planned.resolved.builder.name} {made.planned.request.precision}: {made.gate.text if made.gate else ''}"
    )


def _summary(best: ValidatedBuild, mixed: MixedPrecisionResult | None, ms: Mapping[str, float]) -> str:
    precision = best.planned.request.precision
    what = f"{precision} of {best.planned.resolved.builder.name}, {ms[best.record.key]:.3f} ms per image"
    if mixed is not None:
        return f"{what}: {mixed.text}"
    if best.planned.resolved.source_info.precision is not None:
        return f"{what}: the only precision of the source model"
    if precision in _CALIBRATED:
        return f"{what}: the fastest that passes the gate"
    return f"selected {what}: no quantized engine is faster and passes the gate"
