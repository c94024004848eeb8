"""`inspect` from the command line: its JSON document, and engines that do not run here."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jsonschema

import yolotrt_core
from yolotrt_core.files.paths import sidecar_path

from .conftest import Run

SCHEMA = json.loads((Path(yolotrt_core.__file__).parent / "schemas" / "inspect.json").read_text())


def test_a_checkpoint_and_its_engine_agree(run: Run, warm: Path, tmp_path: Path) -> None:
    documents = []
    for file in ("parts", str(next((warm / "engine").glob("*fp16.onnx")))):
        ran = run("inspect", file, "--json", store=warm / "store")
        assert ran.code == 0, ran.err
        documents.append(json.loads(ran.out))
        jsonschema.validate(documents[-1], SCHEMA)
    checkpoint, engine = documents
    for key in ("labels", "strides", "anchors", "task"):
        assert checkpoint[key] == engine[key]
    assert {name["status"] for name in checkpoint["names"]} == {"allowed"}
    assert set(engine["precisions"]) == {"fp16"}
    assert len(engine["layers"]) == len(checkpoint["layers"])
    # The same convolutions at another size: operations follow the number of pixels.
    sizes = [height * width for height, width in (checkpoint["size"], engine["size"])]
    assert checkpoint["operations"] / sizes[0] == engine["operations"] / sizes[1]
    text = run("inspect", "parts", "--layers", store=warm / "store").out
    assert all(layer["name"] in text for layer in checkpoint["layers"])


def test_an_engine_for_a_gpu_shows_the_layers_of_its_onnx(run: Run, warm: Path, tmp_path: Path) -> None:
    built = next((warm / "engine").glob("*fp16.onnx"))
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"a plan")
    spec = json.loads(sidecar_path(built).read_text())
    spec |= {"builder": "tensorrt", "engine_sha256": hashlib.sha256(b"a plan").hexdigest()}
    sidecar_path(engine).write_text(json.dumps(spec))
    found = json.loads(run("inspect", str(engine), "--json", store=warm / "store").out)
    assert (found["problem"], set(found["precisions"])) == ("", {"fp16"})
    alone = json.loads(run("inspect", str(engine), "--json", store=tmp_path / "empty").out)
    jsonschema.validate(alone, SCHEMA)
    assert (alone["layers"], alone["labels"]) == ([], found["labels"])
    assert "is not in the store" in alone["problem"]
    assert not (tmp_path / "empty").exists()


def test_refusals(run: Run, warm: Path, tmp_path: Path) -> None:
    for name, data in (("m.engine", b"a plan"), ("m.txt", b"text")):
        (tmp_path / name).write_bytes(data)
        ran = run("inspect", str(tmp_path / name), store=warm / "store")
        assert ran.code == 2
        assert "is not a model that an installed exporter can read" in ran.err
    shutil.copy(next((warm / "engine").glob("*.onnx.json")), tmp_path / "m.engine.json")
    ran = run("inspect", str(tmp_path / "m.engine"), store=warm / "store")
    assert "does not match its sidecar" in ran.err
