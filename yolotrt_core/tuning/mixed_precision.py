"""Mixed precision: the fewest layers to keep in fp16 so that a quantized engine meets `max_drop`.

Layers return to fp16 in the order of their sensitivity. Their number is found by doubling, then
bisection. Each candidate is built and validated like any engine, so an interrupted search resumes
from the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from yolotrt_core.errors import GateError
from yolotrt_core.pipeline.build_options import ResolvedBuild
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.tuning.engine_timing import times_ms
from yolotrt_core.tuning.sensitivity import lowering_step, measure
from yolotrt_core.tuning.sensitivity_options import SensitivityOptions
from yolotrt_core.tuning.validated_build import ValidatedBuild, build_and_validate

_log = logging.getLogger(__name__)

_NAMED = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate of the search.

    Attributes:
        kept: how many layers stay in fp16. loss: of mAP50-95, or of top-1 accuracy, against fp32; low, high: its 95%
            interval, None for too few images.
        passed: whether it passed the gate. size: of the engine file in bytes. key: of its record.
    """

    kept: int
    loss: float
    low: float | None
    high: float | None
    passed: bool
    size: int
    key: str

    @property
    def loss_text(self) -> str:
        """Loss with its interval, if there is one."""
        around = "" if self.low is None or self.high is None else f" ({self.low:.4f} to {self.high:.4f})"
        return f"{self.loss:.4f}{around}"


@dataclass(frozen=True, slots=True)
class MixedPrecisionResult:
    """Result of a search.

    Attributes:
        layers: number of layers that can be quantized. kept: those kept in fp16.
        tried: every candidate, by layers kept; the first is all quantized.
        figure: what the loss is of.
        ms, ms_before: per image with the layers kept and with none, if the engine runs on this machine.
    """

    precision: str
    max_drop: float
    layers: int
    kept: tuple[str, ...]
    tried: tuple[Trial, ...]
    figure: str
    ms: float | None = None
    ms_before: float | None = None

    @property
    def text(self) -> str:
        """Summary in one line."""
        first, chosen = self.tried[0], next(t for t in self.tried if t.kept == len(self.kept))
        speed = f", {self.ms:.3f} ms per image instead of {self.ms_before:.3f}" if self.ms and self.ms_before else ""
        names = ", ".join(self.kept[:_NAMED]) + (f" and {len(self.kept) - _NAMED} more" if self.kept[_NAMED:] else "")
        return (
            f"{len(self.kept)} of {self.layers} layers kept in fp16 ({names}): {self.figure} loss "
            f"{chosen.loss_text} instead of {first.loss_text} (maximum {self.max_drop:g}); "
            f"{chosen.size:,} bytes instead of {first.size:,}{speed}"
        )


def is_search_needed(made: ValidatedBuild) -> bool:
    """Return whether to search: the build failed a given `max_drop`, and has quantized layers."""
    resolved = made.planned.resolved
    options = resolved.options.resolve(SensitivityOptions, "sensitivity")
    return (
        not made.passed and options.search and resolved.max_drop is not None and lowering_step(made.planned) is not None
    )


def search(first: ValidatedBuild, *, store: Store, registry: Registry) -> tuple[ValidatedBuild, MixedPrecisionResult]:
    """Find the fewest layers to keep in fp16.

    Args:
        first: the build with all layers quantized, which failed; see `is_search_needed`.

    Raises:
        GateError: no engine that quantizes anything passes.
    """
    max_drop, precision = float(first.planned.resolved.max_drop or 0), first.planned.request.precision
    _log.info("mixed     %s; searching for the layers to keep in fp16", first.gate.text if first.gate else "")
    ranking = measure(first.planned, store=store, registry=registry)
    order = [d.layer for d in ranking.layers]
    builds = {0: first}

    def passes(count: int) -> bool:
        if count not in builds:
            builds[count] = build_and_validate(_keep_layers(first, order[:count]), store=store, registry=registry)
            trial = _trial(count, builds[count])
            _log.info(
                "mixed     %d of %d layers in fp16: loss %.4f, %s",
                count, len(order), trial.loss, "passed" if trial.passed else "failed",
            )  # fmt: skip
        return builds[count].passed

    count = find_fewest(passes, len(order))
    if count is None:
        raise GateError(
            f"no {precision} configuration meets `--max-drop {max_drop:g}`; "
            + "; ".join(f"{n} of {len(order)} layers in fp16 lose {_trial(n, b).loss:.4f}" for n, b in _sorted(builds)),
            hint="use `--precision fp16`, another `--calibrator` or more `--calib-data`; the store keeps the builds",
        )
    chosen = builds[count]
    ms: dict[str, float] = {}
    if chosen.planned.resolved.builder.stage.runnable().ok:
        ms = times_ms([first, chosen], store=store, registry=registry)
    result = MixedPrecisionResult(
        precision=precision,
        max_drop=max_drop,
        layers=len(order),
        kept=tuple(order[:count]),
        tried=tuple(_trial(n, b) for n, b in _sorted(builds)),
        figure="top-1 accuracy" if chosen.gate is not None and chosen.gate.facts["by"] == "top1" else "mAP50-95",
        ms=ms.get(chosen.record.key),
        ms_before=ms.get(first.record.key),
    )
    _log.info("mixed     %s", result.text)
    return chosen, result


def find_fewest(passes: Callable[[int], bool], count: int) -> int | None:
    """Find the smallest number from 1 to `count` - 1 that passes, in about 2 log2 `count` calls.

    Assumes that all numbers above a passing one pass. On few images that holds only approximately: the
    returned number passed, and one less did not.
    """
    low, high = 0, 1
    while high < count and not passes(high):
        low, high = high, high * 2
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high if high < count else None


def _keep_layers(first: ValidatedBuild, layers: Sequence[str]) -> ResolvedBuild:
    """Return the build with these layers kept in fp16, in addition to those that the user named."""
    step = lowering_step(first.planned)
    assert step is not None
    named = [step.options.keep] if step.options.keep else []
    resolved = first.planned.resolved
    flags = resolved.options.flags
    table = {**flags.get(step.prefix, {}), "keep": ",".join([*named, *layers])}
    return replace(resolved, options=replace(resolved.options, flags={**flags, step.prefix: table}))


def _sorted(builds: Mapping[int, ValidatedBuild]) -> list[tuple[int, ValidatedBuild]]:
    return sorted(builds.items())


def _trial(kept: int, made: ValidatedBuild) -> Trial:
    assert made.gate is not None
    facts = made.gate.facts
    low, high = (None if facts[k] is None else float(str(facts[k])) for k in ("drop_low", "drop_high"))
    return Trial(kept, float(str(facts["drop"])), low, high, made.passed, made.engine.size, made.record.key)
