"""The main job through both commands, on the embedded model; every --json against its schema."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

import yolotrt_core
from yolotrt_core.export.model_source import sample_path

from .conftest import COMMANDS, ROOT, Run, call, start

_SCHEMAS = Path(yolotrt_core.__file__).parent / "schemas"


def _valid(text: str, schema: str) -> Any:
    document = json.loads(text)
    jsonschema.validate(document, json.loads((_SCHEMAS / f"{schema}.json").read_text()))
    return document


@pytest.mark.parametrize(
    "line",
    [
        "build --builder onnxruntime --json",
        "build --precision none",
        "build --precison fp16",
        "build --help",
        "detect sample --builder onnxruntime",
        "detect missing.png",
        "evaluate --data nowhere",
        "sensitivity --precision fp16",
        "bench --frame big",
        "artifacts.list",
        "artifacts.explain --builder onnxruntime",
        "artifacts.show",
        "inspect parts",
        "plugins --options",
        "plugin.new own --kind pass",
        "doctor --json",
    ],
)
def test_both_commands_say_the_same(warm: Path, tmp_path: Path, line: str) -> None:
    ran = []
    for command in COMMANDS:
        (tmp_path / command).mkdir()
        ran.append(start(command, *line.split(), cwd=tmp_path / command, store=warm / "store"))
    here = tmp_path / "here"
    here.mkdir()
    ran.append(call(*line.split(), cwd=here, store=warm / "store"))
    assert "Traceback" not in ran[0].err
    if "--help" in line:  # whose first line names the command
        assert ran[0].out.partition("\n")[2] == ran[1].out.partition("\n")[2] == ran[2].out.partition("\n")[2]
    elif "doctor" not in line:
        assert ran[0].out == ran[1].out == ran[2].out
    assert ran[0].code == ran[1].code == ran[2].code


def test_a_second_build_runs_no_stage(run: Run, warm: Path, tmp_path: Path) -> None:
    ran = run("build", "--builder", "onnxruntime", "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    document = _valid(ran.out, "build")
    assert document["from_cache"] is True
    assert [s["step"] for s in document["steps"]] == ["export", "simplify", "parity", "fp16", "build"]
    engine = tmp_path / "here" / document["engine"]
    assert engine.read_bytes() == next((warm / "engine").glob("*.onnx")).read_bytes()
    assert (tmp_path / "here" / document["spec"]).is_file()
    parity = next(s for s in document["steps"] if s["step"] == "parity")
    assert parity["facts"]["outputs"][0]["relative_l2"] <= 1e-5


def test_build_prints_the_engine_and_nothing_else(run: Run, warm: Path, tmp_path: Path) -> None:
    ran = run("build", "--builder", "onnxruntime", "--out", "mine", store=warm / "store")
    lines = ran.out.splitlines()
    assert len(lines) == 1
    assert (tmp_path / "here" / lines[0]).is_file()
    assert Path(lines[0]).parent == Path("mine")


def test_recipe_sets_what_no_flag_does(run: Run, warm: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[build]\nbuilder = 'onnxruntime'\nprecision = 'fp32'\n[simplify]\ntool = 'off'\n")
    document = _valid(run("build", "--recipe", str(recipe), "--json", store=warm / "store").out, "build")
    assert document["precision"] == "fp32"
    assert "simplify" not in [s["step"] for s in document["steps"]]
    ran = run("build", "--recipe", str(recipe), "--precision", "fp16", "--json", store=warm / "store")
    assert _valid(ran.out, "build")["precision"] == "fp16"


def test_detect_on_the_sample(run: Run, warm: Path, tmp_path: Path) -> None:
    ran = run("detect", "sample", "--builder", "onnxruntime", "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    document = _valid(ran.out, "detect")
    found = document["images"][0]["detections"]
    assert len(found) >= 3
    assert [d["score"] for d in found] == sorted((d["score"] for d in found), reverse=True)
    here = tmp_path / "here" / "detections"
    assert json.loads((here / "detections.json").read_text())["images"] == document["images"]
    image = cv2.imread(str(sample_path()))
    drawn = cv2.imread(str(here / sample_path().name))
    assert drawn.shape == image.shape
    x1, y1, x2, _ = (int(v) for v in found[0]["box"])
    edge = np.abs(drawn.astype(int) - image.astype(int))[max(0, y1 - 2) : y1 + 3, x1:x2]
    assert edge.max() > 60  # the best box's upper edge was really drawn


def test_formats(run: Run, warm: Path, tmp_path: Path) -> None:
    shutil.copy(sample_path(), tmp_path / "000000000139.jpg")
    common = ("detect", str(tmp_path / "000000000139.jpg"), "--builder", "onnxruntime")
    own = _valid(run(*common, "--json", store=warm / "store").out, "detect")["images"][0]
    run(*common, "--format", "coco", "--out", "coco", store=warm / "store")
    coco = json.loads((tmp_path / "here" / "coco" / "predictions.json").read_text())
    assert [c["image_id"] for c in coco] == [139] * len(own["detections"])
    for entry, detection in zip(coco, own["detections"], strict=True):
        x1, y1, x2, y2 = detection["box"]
        assert entry["category_id"] == detection["class_id"]
        assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=2e-3)
        assert entry["score"] == detection["score"]
    run(*common, "--format", "yolo", "--out", "yolo", store=warm / "store")
    rows = (tmp_path / "here" / "yolo" / "labels" / "000000000139.txt").read_text().splitlines()
    for row, detection in zip(rows, own["detections"], strict=True):
        class_id, cx, cy, w, h, score = (float(v) for v in row.split())
        x1, y1, x2, y2 = detection["box"]
        assert class_id == detection["class_id"]
        assert score == pytest.approx(detection["score"], abs=1e-6)
        width, height = own["width"], own["height"]
        assert [cx * width, cy * height] == pytest.approx([(x1 + x2) / 2, (y1 + y2) / 2], abs=0.01)
        assert [w * width, h * height] == pytest.approx([x2 - x1, y2 - y1], abs=0.01)


def test_selection_flags(run: Run, warm: Path) -> None:
    def found(*flags: str) -> list[dict[str, Any]]:
        ran = run("detect", "sample", "--builder", "onnxruntime", "--json", *flags, store=warm / "store")
        assert ran.code == 0, ran.err
        image = json.loads(ran.out)["images"][0]
        return [*image["detections"], {"truncated": image["truncated"]}]

    everything = found()[:-1]
    strict = found("--conf", "0.6")[:-1]
    assert strict == [d for d in everything if d["score"] > 0.6]
    wanted = everything[0]["class_id"]
    only = found("--classes", str(wanted))[:-1]
    assert {d["class_id"] for d in only} == {wanted}
    cut = found("--max-det", "1")
    assert cut[:-1] == everything[:1]
    assert cut[-1]["truncated"] == len(everything) - 1


def test_a_folder_goes_on_past_a_bad_file(run: Run, warm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(sample_path(), folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"nothing")
    shutil.copy(sample_path(), folder / "c.jpg")
    ran = run("detect", str(folder), "--builder", "onnxruntime", "--out", "o", store=warm / "store")
    assert ran.code == 2
    assert "1 of 3 files could not be read" in ran.err
    written = json.loads((tmp_path / "here" / "o" / "detections.json").read_text())
    assert [Path(i["path"]).name for i in written["images"]] == ["a.jpg", "c.jpg"]
    assert written["images"][0]["detections"] == written["images"][1]["detections"]


def test_a_video(run: Run, warm: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(sample_path()))
    height, width = image.shape[:2]
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    assert writer.isOpened()
    for _ in range(3):
        writer.write(image)
    writer.release()
    ran = run("detect", str(path), "--builder", "onnxruntime", "--json", store=warm / "store")
    assert ran.code == 0, ran.err
    images = _valid(ran.out, "detect")["images"]
    assert [i["frame"] for i in images] == [0, 1, 2]
    assert all(i["detections"] for i in images)
    capture = cv2.VideoCapture(str(tmp_path / "here" / "detections" / "video.mp4"))
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames == 3


def test_timing_is_shown_on_request(run: Run, warm: Path) -> None:
    ran = run("detect", "sample", "--builder", "onnxruntime", "--show-timing", store=warm / "store")
    assert all(step in ran.out for step in ("preprocess", "infer", "postprocess"))


def test_plugins_and_doctor(run: Run) -> None:
    plugins = _valid(run("plugins", "--json").out, "plugins")
    assert plugins["broken"] == []
    named = {(s["kind"], s["name"]) for s in plugins["stages"]}
    assert {("exporter", "torch"), ("pass", "fp16"), ("builder", "tensorrt"), ("postprocessor", "yolov5")} <= named
    ran = run("plugins", "--options")
    assert "--tensorrt-workspace" in ran.out
    doctor = _valid(run("doctor", "--json").out, "doctor")
    assert doctor["yolotrt"] == importlib.metadata.version("yolotrt-core")
    torch = next(p for p in doctor["packages"] if p["package"] == "torch")
    assert torch["installed"] == importlib.metadata.version("torch")
    shown = run("doctor").out
    assert "onnxruntime" in shown


def test_artifacts(run: Run, warm: Path, tmp_path: Path) -> None:
    store = warm / "store"
    listed = _valid(run("artifacts.list", "--json", store=store).out, "artifacts")["artifacts"]
    engine = next(a for a in listed if "parts-fp16-onnxruntime" in a.get("names", []))
    shown = _valid(run("artifacts.show", engine["key"][:12], "--json", store=store).out, "artifacts")
    assert shown["record"]["key"] == engine["key"]
    origin = shown["inputs"]["onnx"]
    while isinstance(origin, dict):  # back to the checkpoint
        origin = origin["inputs"].get("onnx", origin["inputs"].get("source"))
    from yolotrt_core.export.model_source import default_model_path
    from yolotrt_core.files.digest import sha256_of

    assert origin == sha256_of(default_model_path())
    assert "from outside the store" in run("artifacts.show", engine["key"], store=store).out
    explained = _valid(run("artifacts.explain", "--builder", "onnxruntime", "--json", store=store).out, "artifacts")
    assert {s["outcome"] for s in explained["steps"]} == {"found"}
    other = _valid(
        run("artifacts.explain", "--builder", "onnxruntime", "--imgsz", "256", "--json", store=store).out, "artifacts"
    )
    assert other["steps"][0]["outcome"] == "would run"
    assert {"part": "request.height", "stored": 320, "wanted": 256} in other["steps"][0]["differences"]
    assert _valid(run("artifacts.verify", "--json", store=store).out, "artifacts")["damage"] == []
    dry = _valid(run("artifacts.gc", "--dry-run", "--json", store=store).out, "artifacts")
    assert dry["records"] == []


def test_artifacts_export(run: Run, warm: Path, tmp_path: Path) -> None:
    common = ("--builder", "onnxruntime", "--out", "taken")
    for kind in ("onnx", "engine"):
        ran = run("artifacts.export", "--kind", kind, "--json", *common, store=warm / "store")
        assert ran.code == 0, ran.err
        assert (tmp_path / "here" / _valid(ran.out, "artifacts")["path"]).is_file()
    ran = run("artifacts.export", "--kind", "ranges", *common, store=warm / "store")
    assert ran.code == 2
    assert "has no ranges" in ran.err
    ran = run("artifacts.export", "--kind", "onnx", *common, "--imgsz", "256", store=warm / "store")
    assert ran.code == 2
    assert "stage `export` has not run" in ran.err


@pytest.mark.parametrize("task", ["list", "verify", "repair", "gc", "show"])
def test_a_store_that_is_not_there_is_not_an_empty_one(run: Run, warm: Path, tmp_path: Path, task: str) -> None:
    arguments = [f"artifacts.{task}", *(["abc"] if task == "show" else [])]
    ran = run(*arguments, "--store", "mistyped", store=warm / "store")
    assert ran.code == 5
    assert "`--store` expects an artifact store, found `" in ran.err
    assert "mistyped`: the folder does not exist" in ran.err
    assert ran.out == ""
    (tmp_path / "file").touch()
    assert "file`: it is a file" in run(*arguments, "--store", str(tmp_path / "file")).err
    (tmp_path / "folder").mkdir()
    ran = run(*arguments, store=tmp_path / "folder")
    assert ran.code == 5
    assert "YOLOTRT_STORE expects an artifact store" in ran.err
    assert "the folder is not a store" in ran.err
    assert list((tmp_path / "folder").iterdir()) == []
    if task == "show":
        ran = run(*arguments, store=warm / "store")
        assert ran.code == 2
        assert "no artifact with the name or key prefix `abc`" in ran.err


def test_the_default_store_need_not_be_made_yet(tmp_path: Path) -> None:
    # Without the variable it is in the clone, where others may have built: so a copy of the core, installed nowhere.
    shutil.copytree(ROOT / "yolotrt_core", tmp_path / "installed" / "yolotrt_core")
    code = "import sys; from yolotrt_core.cli import main; sys.argv[1:] = ['artifacts.list', '--json']; main()"
    path = os.pathsep.join([str(tmp_path / "installed"), str(ROOT / "plugins")])
    environment = {**os.environ, "YOLOTRT_STORE": "", "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["artifacts"]) == (0, [])


def test_reports_show_sizes_as_the_list_does(run: Run, warm: Path) -> None:
    listed = run("artifacts.list", store=warm / "store").out.splitlines()
    size = json.loads(run("artifacts.verify", "--json", store=warm / "store").out)["size"]
    assert f"size     {size / 1e6:.2f} MB\n" in run("artifacts.verify", store=warm / "store").out
    report = run("artifacts.gc", "--keep-days", "0", "--dry-run", store=warm / "store").out
    assert " MB\n" in report
    gone = report.partition("\nrecords:\n")[2].partition("\n\n")[0].splitlines()
    assert gone[0].split() == listed[0].split()[:-1]
    assert len(gone) > 1
    cells = [line.split() for line in listed]
    assert all(line.split() in [row[: len(line.split())] for row in cells] for line in gone)


def test_a_stream_address(run: Run, warm: Path, tmp_path: Path) -> None:
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *told: object) -> None:
            return

    image = cv2.imread(str(sample_path()))
    writer = cv2.VideoWriter(str(tmp_path / "f.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, image.shape[1::-1])
    for _ in range(5):
        writer.write(image)
    writer.release()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://user:secret@127.0.0.1:{server.server_port}/f.avi"
        common = ("--builder", "onnxruntime", "--max-frames", "3", "--json")
        ran = run("detect", address, *common, store=warm / "store")
        assert ran.code == 0, ran.err
        images = _valid(ran.out, "detect")["images"]
        assert [i["frame"] for i in images] == [0, 1, 2]
        assert "secret" not in ran.out + ran.err
        gone = run("detect", address.replace("f.avi", "g.avi"), *common, store=warm / "store")
        assert gone.code == 2
        assert f"cannot open the live source `http://***@127.0.0.1:{server.server_port}/g.avi`" in gone.err
        assert "secret" not in gone.err
    finally:
        server.shutdown()
        server.server_close()
