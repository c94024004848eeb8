"""Timing of repeated calls: percentiles, several candidates interleaved in one run."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock times of repeated calls, in milliseconds.

    Attributes:
        p50_ms, p90_ms, p99_ms: percentiles (nearest rank). repeats: number of calls.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    best_ms: float
    mean_ms: float
    repeats: int

    def per_second(self, units: int) -> float:
        """Return the median units per second, for `units` per call."""
        return units * 1000.0 / self.p50_ms


def timing(samples_ms: Sequence[float]) -> Timing:
    """Summarize samples.

    Raises:
        ValueError: no samples.
    """
    if not samples_ms:
        raise ValueError("no samples")
    ordered = sorted(samples_ms)

    def percentile(percent: int) -> float:
        return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

    mean = sum(ordered) / len(ordered)
    return Timing(percentile(50), percentile(90), percentile(99), ordered[0], mean, len(ordered))


def measure(call: Callable[[], object], *, repeats: int, warmup: int = 10) -> Timing:
    """Time calls one after another, with garbage collection off.

    Args:
        call: waits for its work.
    """
    return measure_interleaved({"": call}, repeats=repeats, warmup=warmup)[""]


def measure_interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 10, burst: int = 1, seed: int = 0
) -> dict[str, Timing]:
    """Time several calls in shuffled rounds, so that drift affects all alike.

    Args:
        calls: by name; each waits for its work. repeats: rounds, `burst` calls of each.
        burst: calls in a row; more than 1 if threads of one candidate keep spinning and slow the next.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    order = list(calls)
    shuffler = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeats):
            shuffler.shuffle(order)
            for name in order:
                for _ in range(burst):
                    begin = time.perf_counter_ns()
                    calls[name]()
                    samples[name].append((time.perf_counter_ns() - begin) / 1e6)
    finally:
        if collecting:
            gc.enable()
    return {name: timing(times) for name, times in samples.items()}
