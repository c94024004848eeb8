"""`bench` through both commands; the figures themselves are a machine's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

import yolotrt_core

from .conftest import Run

pytestmark = pytest.mark.usefixtures("short_timing")

_SCHEMA = json.loads((Path(yolotrt_core.__file__).parent / "schemas" / "bench.json").read_text())


def test_batches_of_one_model(run: Run, warm: Path) -> None:
    common = ("--builder", "onnxruntime", "--repeats", "5", "--frame", "120x160", "--json")
    ran = run("bench", "--batches", "1,2", *common, store=warm / "store")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    jsonschema.validate(document, _SCHEMA)
    assert [e["batch"] for e in document["engines"]] == [1, 2]
    for engine in document["engines"]:
        assert engine["engine"]["repeats"] >= 5
        assert 0 < engine["engine"]["best_ms"] <= engine["engine"]["p50_ms"] <= engine["engine"]["p99_ms"]
        # The whole holds the engine and more.
        assert engine["end_to_end"]["best_ms"] > 0.5 * engine["engine"]["best_ms"]
        assert engine["images_per_second"] == pytest.approx(engine["batch"] * 1000 / engine["end_to_end"]["p50_ms"])
        # One batch at a time on the CPU, so that both say the same but for a busy machine.
        assert 0.2 < engine["stream_images_per_second"] / engine["images_per_second"] < 5
        assert set(engine["steps_ms"]) == {"preprocess", "infer", "postprocess"}


def test_two_engines_side_by_side(run: Run, warm: Path) -> None:
    engine = str(next((warm / "engine").glob("*.onnx")))
    ran = run("bench", "--engine", engine, "--against", engine, "--repeats", "5", store=warm / "store")
    assert ran.code == 0, ran.err
    words = r"first / second: ms of engine [\d.]+, of frames to boxes [\d.]+; images/s of stream [\d.]+"
    assert re.search(words, ran.out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--frame", "big"), "`--frame` expects HEIGHTxWIDTH"),
        (("--repeats", "0"), "`--repeats` expects a whole number, at least 1"),
        (("--batches", "1,x"), "`--batches` expects whole numbers of at least 1"),
        (("--batches", "1", "--engine", "x.engine"), "`--batches` builds static engines"),
        (("--engine", "x.engine"), "no such engine file: `x.engine`"),
    ],
)
def test_refusals(run: Run, arguments: tuple[str, ...], words: str) -> None:
    ran = run("bench", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err
