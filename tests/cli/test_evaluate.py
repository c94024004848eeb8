"""`evaluate` as users start it, on the embedded model and its bundled image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import yolotrt_core
from yolotrt_core.export.model_source import sample_path

from .conftest import Run

_SCHEMA = Path(yolotrt_core.__file__).parent / "schemas" / "evaluate.json"
_FP32 = ("--builder", "onnxruntime", "--precision", "fp32")


@pytest.fixture
def labelled(run: Run, warm: Path, tmp_path: Path) -> Path:
    """The bundled image, labelled with what fp32 finds on it."""
    place = tmp_path / "set"
    (place / "images").mkdir(parents=True)
    shutil.copy(sample_path(), place / "images" / "sample.jpg")
    wanted = ("--format", "yolo", "--label-scores", "off", "--out", str(place))
    ran = run("detect", "sample", *_FP32, *wanted, store=warm / "store")
    assert ran.code == 0, ran.err
    lines = (place / "labels" / "sample.txt").read_text().splitlines()
    assert {len(line.split()) for line in lines} == {5}
    return place


@pytest.mark.slow
def test_coco_as_roboflow_writes_it(run: Run, data: Path, tmp_path: Path) -> None:
    """Truth is what the model itself finds above 0.25, in classes that are not in the model's order: AP is near 1."""
    script = data.parent / "field" / "make_roboflow_root_category.py"
    if not script.is_file():
        pytest.skip(f"no {script.name} next to the test data")
    model = ("--weights", str(data / "weights" / "helmet_yolov5n.pt"), "--imgsz", "320", *_FP32)
    found = run("detect", str(data / "coco" / "images" / "val"), *model, "--annotate", "off", "--json")
    assert found.code == 0, found.err
    (tmp_path / "found.json").write_text(found.out)
    subprocess.run([sys.executable, script, tmp_path / "found.json", tmp_path / "set" / "valid"], check=True)
    annotations = tmp_path / "set" / "valid" / "_annotations.coco.json"

    def evaluated(*arguments: str) -> dict[str, Any]:
        ran = run("evaluate", *model, "--data", str(annotations), "--bootstrap", "0", "--json", *arguments)
        assert ran.code == 0, ran.err
        return {c["label"]: c["ap50"] for c in json.loads(ran.out)["classes"]}

    as_it_is = evaluated()
    assert as_it_is == {"helmet": pytest.approx(1, abs=0.05)}
    text = annotations.read_text()
    annotations.write_text(text.replace('"name": "helmet"', '"name": "hard hat"'))
    ran = run("evaluate", *model, "--data", str(annotations))
    assert (ran.code, ran.out) == (2, "")
    assert "1 class with boxes is missing in the model, `hard hat`" in ran.err
    assert "1 hard hat" in ran.err
    assert evaluated("--class-map", "hard hat=helmet") == as_it_is
    assert evaluated("--class-map", "1=0") == as_it_is


def test_its_own_labels_are_found_again(run: Run, warm: Path, labelled: Path) -> None:
    ran = run("evaluate", "--data", str(labelled), *_FP32, "--json", "--bootstrap", "3", store=warm / "store")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads(_SCHEMA.read_text()))
    assert document["map50"]["value"] == pytest.approx(1.0)
    assert document["map50_95"]["value"] > 0.95  # the labels are rounded to 6 digits
    assert (document["map50"]["low"], document["map50_95"]["high"]) == (None, None)  # of one image, by 3 resamples
    assert document["against"] is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--bootstrap", "0"), None),
        ((), "no confidence interval: only 1 image; at least 6 needed"),
    ],
)
def test_no_interval_is_printed_where_there_is_none(
    run: Run, warm: Path, labelled: Path, arguments: tuple[str, ...], told: str | None
) -> None:
    ran = run("evaluate", "--data", str(labelled), *_FP32, *arguments, store=warm / "store")
    assert ran.code == 0, ran.err
    assert "95%" not in ran.out
    assert " to " not in ran.out
    assert ran.out.splitlines()[-1] == told if told else "interval" not in ran.out


def test_few_resamples_of_enough_images_tell_nothing(run: Run, warm: Path, labelled: Path) -> None:
    for part in ("images/sample.jpg", "labels/sample.txt"):
        for i in range(5):
            shutil.copy(labelled / part, (labelled / part).with_stem(f"s{i}"))
    arguments = ("--data", str(labelled), *_FP32, "--against", "fp16", "--bootstrap")
    ran = run("evaluate", *arguments, "1", store=warm / "store")
    assert ran.code == 0, ran.err
    told = "the difference in mAP50-95 was not tested for significance: only 1 resample; at least 100 needed"
    assert ran.out.splitlines()[-1] == told
    enough = run("evaluate", *arguments, "100", store=warm / "store")
    assert "95%" in enough.out
    assert "not tested" not in enough.out


def test_two_precisions_are_compared(run: Run, warm: Path, labelled: Path) -> None:
    arguments = ("--data", str(labelled), "--builder", "onnxruntime", "--against", "fp32", "--bootstrap", "3")
    ran = run("evaluate", *arguments, "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads(_SCHEMA.read_text()))
    assert document["engine"]["precision"] == "fp16"
    assert document["against"]["engine"]["precision"] == "fp32"
    assert abs(document["against"]["difference"]["map50"]["value"]) < 0.05
    table = run("evaluate", *arguments, store=warm / "store")
    assert "not tested for significance: only 1 image; at least 6 needed" in table.out
    assert "distinguishable" not in table.out
    assert document["against"]["difference"]["more_than_noise"] is None


def test_a_half_precision_source_has_no_float32_engine_to_compare_with(
    run: Run, warm: Path, labelled: Path, tmp_path: Path
) -> None:
    shutil.copy(next((warm / "engine").glob("*.onnx")), tmp_path / "here" / "half.onnx")
    common = ("--builder", "onnxruntime", "--weights", "half.onnx")
    for against in ("fp32", "int8"):
        ran = run("evaluate", "--data", str(labelled), *common, "--against", against, store=warm / "store")
        assert ran.code == 2
        assert f"`--against {against}` needs a float32 model, but `half.onnx` is already fp16" in ran.err
        assert "pass the engine file here" in ran.err
    run("build", *_FP32, "--out", "full", store=warm / "store")
    engine = next((tmp_path / "here" / "full").glob("*.onnx"))
    ran = run("evaluate", "--data", str(labelled), *common, "--against", str(engine), store=warm / "store")
    assert ran.code == 0, ran.err
    assert "onnxruntime fp32" in ran.out


def test_the_model_in_its_own_framework(run: Run, warm: Path, labelled: Path) -> None:
    ran = run("evaluate", "--data", str(labelled), "--framework", "--json", "--bootstrap", "0", store=warm / "store")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    jsonschema.validate(document, json.loads(_SCHEMA.read_text()))
    assert document["engine"]["builder"] == "torch"
    assert document["map50"]["value"] == pytest.approx(1.0)


def test_images_at_their_own_shape(run: Run, warm: Path, labelled: Path) -> None:
    arguments = ("--data", str(labelled), "--framework", "--rect", "on", "--bootstrap", "0")
    ran = run("evaluate", *arguments, "--dynamic", "on", "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["map50"]["value"] > 0.7
    refused = run("evaluate", *arguments, store=warm / "store")
    assert refused.code == 2
    assert "needs a dynamic-shape engine" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "`evaluate` needs labelled images"),
        (("--data", "nowhere"), "the data set `nowhere` does not exist"),
        (("--data", ".", "--part", "half"), "`--part` expects `train`, `val` or `test`, found `half`"),
        (("--data", ".", "--bootstrap", "x"), "`--bootstrap` expects a whole number"),
        (
            ("--data", ".", "--bootstrap", "100000000"),
            "a whole number, at least 0 and at most 100000",
        ),
        (("--data", ".", "--against", "fp32", "--bootstrap", "0"), "`--against` needs resamples"),
        (("--data", ".", "--engine", "none.onnx"), "no such engine file: `none.onnx`"),
        (("--data", ".", "--engine", "none.onnx", "--framework"), "`--framework` needs `--weights`"),
    ],
)
def test_refusals(run: Run, warm: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = run("evaluate", *arguments, *(() if "--engine" in arguments else _FP32), store=warm / "store")
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err
    assert "Traceback" not in ran.err
