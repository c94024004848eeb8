"""Percentiles against NumPy's, and calls that are all made."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from yolotrt_core.benchmark.timer import measure, measure_interleaved, timing


def test_percentiles_are_the_nearest_ranks() -> None:
    samples = np.random.default_rng(0).exponential(3, 257).tolist()
    found = timing(samples)
    wanted = [np.percentile(samples, p, method="inverted_cdf") for p in (50, 90, 99)]
    assert [found.p50_ms, found.p90_ms, found.p99_ms] == wanted
    assert (found.best_ms, found.repeats) == (min(samples), 257)
    assert found.mean_ms == pytest.approx(np.mean(samples))
    assert timing([4.0]).p99_ms == 4.0
    assert timing([2.0]).per_second(32) == 16000


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        timing([])


def test_every_call_is_made_and_the_collector_restored() -> None:
    made = {"a": 0, "b": 0}

    def count(name: str) -> None:
        made[name] += 1

    found = measure_interleaved({"a": lambda: count("a"), "b": lambda: count("b")}, repeats=7, warmup=2)
    assert made == {"a": 9, "b": 9}
    assert found["a"].repeats == found["b"].repeats == 7
    assert gc.isenabled()
    found = measure_interleaved({"a": lambda: count("a"), "b": lambda: count("b")}, repeats=3, warmup=0, burst=4)
    assert made == {"a": 21, "b": 21}
    assert found["a"].repeats == 12
    assert measure(lambda: None, repeats=3).repeats == 3
