"""Times functions that live in several processes in one run, shuffled, so that all meet the same machine.

A benchmark starts one worker process for each contender. Only one works at a time: the parent names a
case, the worker runs it once and answers with the seconds. Imports nothing outside the standard
library, since workers run in the peers' environment too.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Contender:
    """One worker: `command` is started and then told case names, one a line."""

    name: str
    command: Sequence[str]


def serve(cases: Mapping[str, Callable[[], object]], burst: int) -> None:
    """Be a worker: run each case that standard input names `burst` times, answer with the median seconds.

    The first run after another worker's finds cold caches, which says more of the machine than of the
    code; `burst` 1 measures only that. SIDE_BY_SIDE_CLOCK=cpu in the environment counts CPU time instead
    of wall time, for single-threaded contenders on a machine that is busy with other things.
    """
    clock = time.process_time if os.environ.get("SIDE_BY_SIDE_CLOCK") == "cpu" else time.perf_counter
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints must not look like an answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = cases[line.strip()]
        times = []
        for _ in range(burst):
            began = clock()
            case()
            times.append(clock() - began)
        print(statistics.median(times), file=answers, flush=True)


def compare(
    contenders: Sequence[Contender], cases: Sequence[str], threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the median seconds by case and contender.

    A case name that ends in `#` stands for `#0`, `#1` ... in turn: the median is over all of them.
    """
    environment = {**os.environ, **dict.fromkeys(_POOLS, str(threads))}
    workers = {}
    for contender in contenders:
        workers[contender.name] = subprocess.Popen(
            contender.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    try:
        for name, worker in workers.items():
            if _line(worker) != "ready":
                sys.exit(f"worker `{name}` did not start")
        times: dict[tuple[str, str], list[float]] = {}
        for turn in range(-2, rounds):  # the first two warm caches and allocators
            pairs = [(case, name) for case in cases for name in workers]
            for case, name in random.sample(pairs, len(pairs)):
                seconds = _run(workers[name], f"{case}{turn + 2}" if case.endswith("#") else case)
                if turn >= 0:
                    times.setdefault((case, name), []).append(seconds)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {case: {name: statistics.median(times[case, name]) for name in workers} for case in cases}


def print_table(ours: str, results: Mapping[str, Mapping[str, float]], targets: Mapping[str, float]) -> None:
    """Print one row a case: milliseconds of all, and ours through the fastest peer's beside what must hold."""
    names = list(next(iter(results.values())))
    print(f"{'milliseconds, median':34}" + "".join(f"{name:>13}" for name in names) + "   ratio  must")
    for case, by_name in results.items():
        best = min(seconds for name, seconds in by_name.items() if name != ours)
        times = "".join(f"{by_name[name] * 1e3:13.3f}" for name in names)
        print(f"{case:34}{times}{by_name[ours] / best:8.2f}{targets[case]:6.2f}")


def worker_command(python: Path, script: str, name: str, *arguments: str) -> Contender:
    """Return the contender that is `script --worker name` under an interpreter."""
    return Contender(name, [str(python), "-W", "ignore", script, *arguments, "--worker", name])


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def _run(worker: subprocess.Popen[str], case: str) -> float:
    assert worker.stdin is not None
    worker.stdin.write(case + "\n")
    worker.stdin.flush()
    answer = _line(worker)
    if not answer:
        sys.exit(f"a worker ended while it ran `{case}`")
    return float(answer)
