"""`sensitivity` as users start it, on the embedded model and its bundled image."""

from __future__ import annotations

import json
import shutil
from importlib import util
from pathlib import Path

import jsonschema
import pytest

import yolotrt_core
from yolotrt_core.export.model_source import sample_path

from .conftest import Run

pytestmark = pytest.mark.usefixtures("short_timing")

_SCHEMAS = Path(yolotrt_core.__file__).parent / "schemas"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    shutil.copy(sample_path(), place / "sample.jpg")
    return place


def _validated(text: str, schema: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(text)
    jsonschema.validate(document, json.loads((_SCHEMAS / schema).read_text()))
    return document


def test_layers_are_ranked_once(run: Run, warm: Path, images: Path, tmp_path: Path) -> None:
    keep = "model.2,model.3,model.4,model.6,model.8,model.9,model.13,model.17,model.20,model.23"
    arguments = ("sensitivity", "--builder", "onnxruntime", "--calib-data", str(images), "--int8-keep", keep)
    ran = run(*arguments, "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    document = _validated(ran.out, "sensitivity.json")
    assert isinstance(document["layers"], list)
    names = [layer["layer"] for layer in document["layers"]]
    assert sorted(names) == sorted(f"model.{n}" for n in (0, 1, 5, 7, 10, 14, 18, 21))
    errors = [layer["error"] for layer in document["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0] < 1

    drawing = ("--plot", "damage.svg") if util.find_spec("matplotlib") else ()
    table = run(*arguments, *drawing, store=warm / "store")
    assert table.code == 0, table.err
    assert [line.split()[1] for line in table.out.splitlines()[1:9]] == names
    assert f"--int8-keep {','.join(names[:4])}" in table.out
    if drawing:
        assert "<svg" in (tmp_path / "here" / "damage.svg").read_text()
    cached = _validated(run(*arguments, "--json", store=warm / "store").out, "sensitivity.json")
    assert cached["from_cache"] is True
    assert cached["layers"] == document["layers"]


def test_auto_says_what_it_chose(run: Run, warm: Path) -> None:
    ran = run("build", "--precision", "auto", "--builder", "onnxruntime", "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    document = _validated(ran.out, "build.json")
    assert isinstance(document["auto"], dict)
    tried = {o["precision"]: o for o in document["auto"]["options"]}
    assert set(tried) == {"fp32", "fp16", "int8", "fp8"}
    chosen = document["precision"]
    assert tried[chosen]["passed"]
    assert tried[chosen]["ms"] * 0.97 < min(tried[p]["ms"] for p in ("fp32", "fp16"))  # the precise one if it is close
    assert "--calib-data" in tried["int8"]["note"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp16"), "fp16 quantizes no layers"),
        (("--plot", "x.jpeg"), "`--plot` expects a file with the suffix .svg, .png or .pdf, found `x.jpeg`"),
        ((), "calibrator `percentile` needs images"),
        (("--sensitivity-images", "0"), "`--sensitivity-images` expects a whole number, at least 1"),
    ],
)
def test_refusals(run: Run, warm: Path, arguments: tuple[str, ...], message: str, images: Path) -> None:
    given = ("--calib-data", str(images)) if arguments[:1] == ("--sensitivity-images",) else ()
    ran = run("sensitivity", "--builder", "onnxruntime", *arguments, *given, store=warm / "store")
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err
    assert "Traceback" not in ran.err
