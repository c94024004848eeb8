"""Throughput of engines: alone, and from host frames to boxes; several in one interleaved run."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from yolotrt_core.benchmark.timer import Timing, measure_interleaved, timing
from yolotrt_core.console.progress import progress
from yolotrt_core.inference.detector import Detector
from yolotrt_core.types import Selection, channel_count, with_channels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDS = 5  # the engine's runs are split, so that drift of clocks and neighbours hits all candidates alike
_WARMUP_SECONDS = 0.5
_STREAM_ROUNDS = 3
_STREAM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine to time, with its batch."""

    name: str
    detector: Detector
    batch: int


@dataclass(frozen=True, slots=True)
class Speed:
    """Measurements of a candidate.

    Attributes:
        engine: the engine alone, by the device's clock if there is one. end_to_end: host frames
            to host boxes, wall clock. steps_ms: median of each step; on a device launched one by
            one, so their sum exceeds a detection. graph: how a device launches it.
    """

    name: str
    batch: int
    engine: Timing
    end_to_end: Timing
    steps_ms: Mapping[str, float]
    graph: str | None

    @property
    def images_per_second(self) -> float:
        return self.end_to_end.per_second(self.batch)


def measure_speed(candidates: Sequence[Candidate], frame_size: tuple[int, int], repeats: int) -> list[Speed]:
    """Time every candidate on the same generated frames.

    Args:
        frame_size: (height, width) of the host frames in pixels.
        repeats: calls of each kind and candidate.
    """
    most = max(c.batch for c in candidates)
    frames = _frames(most, frame_size)
    selection = Selection()
    with progress("timing engines", total=3) as bar:
        engine = _engine_times(candidates, repeats)
        bar.update(completed=1, text="timing frames to boxes")
        calls: dict[str, Callable[[], object]] = {}
        for c in candidates:
            calls[c.name] = _detect_call(c, frames, selection)
        end_to_end = measure_interleaved(calls, repeats=repeats, warmup=3)
        bar.update(completed=2, text="timing steps")
        steps = {c.name: _steps(c, frames[: c.batch], selection) for c in candidates}
        bar.update(completed=3)
    return [Speed(c.name, c.batch, engine[c.name], end_to_end[c.name], steps[c.name], _graph(c)) for c in candidates]


def measure_streams(candidates: Sequence[Candidate], frame_size: tuple[int, int]) -> dict[str, float]:
    """Return frames per second of each candidate on a continuous stream, with several batches in flight.

    Args:
        frame_size: (height, width) of the host frames in pixels.
    """
    frames = _frames(max(c.batch for c in candidates), frame_size)
    rates: dict[str, list[float]] = {c.name: [] for c in candidates}
    order = list(candidates)
    shuffler = random.Random(0)
    with progress("timing streams", total=_STREAM_ROUNDS * len(order)) as bar:
        for turn in range(_STREAM_ROUNDS):
            shuffler.shuffle(order)
            for number, c in enumerate(order):
                rates[c.name].append(_stream_rate(c, frames[: c.batch]))
                bar.update(completed=turn * len(order) + number + 1)
    return {name: median(found) for name, found in rates.items()}


def _stream_rate(c: Candidate, frames: Sequence[NDArray[np.uint8]]) -> float:
    def generate(seconds: float) -> Iterator[NDArray[np.uint8]]:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            yield from frames

    for _ in c.detector.stream(generate(_WARMUP_SECONDS)):
        pass
    began = time.perf_counter()
    count = sum(1 for _ in c.detector.stream(generate(_STREAM_SECONDS)))
    return count / (time.perf_counter() - began)


def _detect_call(c: Candidate, frames: Sequence[NDArray[np.uint8]], selection: Selection) -> Callable[[], object]:
    return lambda: c.detector.detect(frames[: c.batch], selection)


def _engine_times(candidates: Sequence[Candidate], repeats: int) -> dict[str, Timing]:
    samples: dict[str, list[float]] = {c.name: [] for c in candidates}
    runs = {c.name: _engine_run(c) for c in candidates}
    order = list(runs)
    shuffler = random.Random(0)
    for _ in range(_ROUNDS):
        shuffler.shuffle(order)
        for name in order:
            samples[name] += runs[name](-(-repeats // _ROUNDS))
    return {name: timing(times) for name, times in samples.items()}


def _engine_run(c: Candidate) -> Callable[[int], list[float]]:
    """Return a function that runs the engine alone `n` times and returns milliseconds."""
    session = c.detector.session
    if session.is_timed:
        return lambda n: session.time_engine(c.batch, n)
    import numpy as np

    model = c.detector.spec.model
    shape = with_channels(c.batch, *c.detector.input_size, model.layout, channel_count(model.channel_order))
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    until = time.perf_counter() + _WARMUP_SECONDS
    while time.perf_counter() < until:
        session.infer(images)

    def run(n: int) -> list[float]:
        marks = [time.perf_counter()]
        for _ in range(n):
            session.infer(images)
            marks.append(time.perf_counter())
        return [1000 * (b - a) for a, b in itertools.pairwise(marks)]

    return run


def _steps(c: Candidate, frames: Sequence[NDArray[np.uint8]], selection: Selection) -> dict[str, float]:
    rounds = [steps for _ in range(9) if (steps := c.detector.device_steps(frames, selection))]
    if rounds:
        return {step: median(r[step] for r in rounds) for step in rounds[0]}
    spent = c.detector.seconds
    before = dict(spent)
    for _ in range(3):
        c.detector.detect(frames, selection)
    return {step: 1000 * (spent[step] - before.get(step, 0.0)) / 3 for step in spent}


def _graph(c: Candidate) -> str | None:
    return c.detector.session.graph


def _frames(count: int, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Generate frames with structure, so that decoding and NMS have work to do."""
    import numpy as np

    random_numbers = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        coarse = random_numbers.integers(0, 256, (-(-size[0] // 16), -(-size[1] // 16), 3), dtype=np.uint8)
        frames.append(np.ascontiguousarray(np.kron(coarse, np.ones((16, 16, 1), np.uint8))[: size[0], : size[1]]))
    return frames
