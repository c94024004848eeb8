"""The fastest engine that the gate lets through, over what can run on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from yolotrt_core.build.settings import BuildSettings, refuse_unchecked, resolve, resolve_model
from yolotrt_core.errors import GateError, PluginError, StageError, UsageError
from yolotrt_core.evaluation.accuracy_gate import GateOptions
from yolotrt_core.plugin.registered import Registered, refuse_unavailable
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.tuning import mixed_precision
from yolotrt_core.tuning.engine_timing import times_ms
from yolotrt_core.tuning.mixed_precision import MixedPrecisionResult
from yolotrt_core.tuning.validated_build import ValidatedBuild, build_and_validate, check_settings
from yolotrt_core.types import PRECISIONS, Precision

_log = logging.getLogger(__name__)

# Of two engines the more precise one, unless the other is faster by more than a shuffled run repeats to.
_FASTER = 0.98
_CALIBRATED: tuple[Precision, ...] = ("int8", "fp8")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One builder and precision, and what became of it.

    Attributes:
        ms: of one image, frames to boxes, in the run in which it was last compared; None if it was
            not timed. passed: whether the gate let it through; None if it was not built.
        note: the verdict, or why it was not built.
    """

    builder: str
    precision: Precision
    kept: int
    ms: float | None
    passed: bool | None
    note: str


@dataclass(frozen=True, slots=True)
class AutoPrecisionResult:
    """The choice among options.

    Attributes:
        options: all of them, in the order they were tried. text: the answer in one line.
        mixed: how the selected engine came to its mix of precisions, if it is one.
    """

    builder: str
    precision: Precision
    options: tuple[Candidate, ...]
    text: str
    mixed: MixedPrecisionResult | None = None


def select(
    settings: BuildSettings, *, store: Store, registry: Registry, force: bool = False
) -> tuple[ValidatedBuild, AutoPrecisionResult]:
    """Build, judge and time every precision on every builder that runs here, and choose.

    Args:
        settings: their precision is not looked at; a named builder is the only one tried.

    Raises:
        UsageError: the gate is off, or the model or data cannot be used.
        PluginError: no builder can run an engine here. GateError: no engine passed.
    """
    gate: GateOptions = settings.options.resolve(GateOptions, "gate")
    if not gate.check:
        raise UsageError(
            "`--precision auto` asks the gate what may be handed out, and it is off here",
            hint="`build` with it first, then name the file with `--engine`",
        )
    model = resolve_model(settings, registry)
    refuse_unchecked(model.source, model.info, registry)
    given = model.info.precision
    pairs = list(_pairs(settings, registry, (given,) if given else PRECISIONS))
    if not pairs:
        raise UsageError(f"the model holds {given}, and no builder that runs here builds that", hint="see `doctor`")
    check_settings(settings)
    first = replace(settings, builder=pairs[0][0].name, precision=pairs[0][1])
    resolved = resolve(first, registry, model)
    made: list[ValidatedBuild] = []
    skipped: list[Candidate] = []
    for builder, precision in pairs:
        reason = None if given else _unfit(settings, precision)
        if reason is None:
            try:
                candidate = replace(resolved, builder=builder, request=replace(resolved.request, precision=precision))
                made.append(build_and_validate(candidate, store=store, registry=registry, force=force))
                continue
            except (StageError, PluginError) as err:
                reason = err.message
        _log.info("auto      %s %s is left out: %s", builder.name, precision, reason)
        skipped.append(Candidate(builder.name, precision, 0, None, None, reason))
    passing = [m for m in made if m.passed]
    if not passing:
        raise GateError("no engine passed the gate: " + "; ".join(_note(m) for m in made), hint="see the log above")
    ms: Mapping[str, float] = times_ms(made, store=store, registry=registry)
    best = _fastest(passing, ms)
    mixed: MixedPrecisionResult | None = None
    for failed in made:
        # Layers in fp16 do not make it faster, so one that is too slow already is not worth a search.
        if mixed_precision.is_search_needed(failed) and ms[failed.record.key] < _FASTER * ms[best.record.key]:
            best, mixed, ms = _search_mixed(failed, best, mixed, ms, store=store, registry=registry)
    options = [*(_option(m, ms) for m in made), *skipped]
    if mixed is not None:
        options.append(replace(_option(best, ms), kept=len(mixed.kept)))
    for option in options:
        if option.ms is not None:
            _log.info("auto      %s %s: %.3f ms an image; %s", option.builder, option.precision, option.ms, option.note)
    text = _answer(best, mixed, ms)
    _log.info("auto      %s", text)
    return best, AutoPrecisionResult(
        best.planned.resolved.builder.name, best.planned.request.precision, tuple(options), text, mixed
    )


def _pairs(
    settings: BuildSettings, registry: Registry, precisions: Sequence[Precision]
) -> Iterator[tuple[Registered, Precision]]:
    """Yield what to try, the most precise first."""
    if settings.builder:
        named = registry.usable("builder", settings.builder)
        refuse_unavailable(named, named.stage.runnable())
        builders = [named]
    else:
        registry.default_builder(to_run=True)  # says for each builder why it cannot
        builders = [b for b in registry.builders() if registry.able(b, to_run=True).ok]
    for precision in precisions:
        for builder in builders:
            if precision in builder.stage.precisions:
                yield builder, precision


def _unfit(settings: BuildSettings, precision: Precision) -> str | None:
    if precision in _CALIBRATED and settings.calib_data is None and settings.calibrator is None:
        return "there are no images to calibrate on (`--calib-data`)"
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
    """Give layers of a failed engine back, and compare what comes out with the best so far."""
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
    note = made.gate.text if made.gate else "what the others are judged by"
    if made.gate is None and made.planned.resolved.source_info.precision is not None:
        note = "the model as it was given"
    request = made.planned.request
    return Candidate(
        made.planned.resolved.builder.name, request.precision, 0, ms.get(made.record.key), made.passed, note
    )


def _note(made: ValidatedBuild) -> str:
    return (
        f"{made.planned.resolved.builder.name} {made.planned.request.precision}: {made.gate.text if made.gate else ''}"
    )


def _answer(best: ValidatedBuild, mixed: MixedPrecisionResult | None, ms: Mapping[str, float]) -> str:
    precision = best.planned.request.precision
    what = f"{precision} of {best.planned.resolved.builder.name}, {ms[best.record.key]:.3f} ms an image"
    if mixed is not None:
        return f"{what}: {mixed.text}"
    if best.planned.resolved.source_info.precision is not None:
        return f"{what}: the model holds no other precision"
    if precision in _CALIBRATED:
        return f"{what}: the fastest that passed"
    return f"{precision} is the answer: {what}; no quantized engine is both faster and good enough"
