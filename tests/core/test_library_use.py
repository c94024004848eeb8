"""A program that uses yolotrt as a library keeps its streams, environment, logging and warnings.

Each test runs a process of its own, since all of these belong to the process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import start
from yolotrt_core.export.model_source import sample_path

# Frameworks change the process when they import their parts, so a first build comes before its state is noted.
_HOST = """
import logging, os, sys, threading, time, warnings
import cv2
from yolotrt_core.api import Detector, build
from yolotrt_core.plugin.registry import Registry

logging.basicConfig(level=logging.ERROR)
folder, images = sys.argv[1:]
written = dict.fromkeys(("python", "native"), 0)
done = threading.Event()

def write(name):
    while not done.is_set():
        line = f"{name} {written[name]}\\n"
        if name == "python":
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            os.write(1, line.encode())
        written[name] += 1
        time.sleep(0.0005)

def state():
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("yolotrt_core", "yolotrt_torch", "torch.onnx")}
    loggers = root.level, root.handlers[:], levels, logging.getLogger("yolotrt_core").handlers[:]
    shown = warnings.filters[:], warnings.showwarning
    rest = sys.stdout, sys.stderr, sys.dont_write_bytecode, cv2.utils.logging.getLogLevel()
    return dict(os.environ), loggers, shown, *rest

common = {"store": folder + "/store", "builder": "onnxruntime", "imgsz": 320}
int8 = {"precision": "int8", "calib_data": images, "out": folder + "/int8"}
build(**int8, **common)
before = state()
threads = [threading.Thread(target=write, args=(name,), daemon=True) for name in written]
for thread in threads:
    thread.start()
for _ in range(10):
    registry = Registry.discover()
build(precision="fp16", out=folder + "/fp16", registry=registry, force=True, **common)
build(**int8, registry=registry, force=True, **common)
with Detector.open(precision="fp16", registry=registry, **common) as detector:
    (found,) = detector.detect([cv2.imread(images + "/sample.jpg")])
done.set()
for thread in threads:
    thread.join()
for was, is_now in zip(before, state(), strict=True):
    assert was == is_now, (was, is_now)
print("boxes", len(found.boxes))
for name, number in written.items():
    print("wrote", name, number)
"""


@pytest.mark.slow
def test_a_host_program_keeps_what_is_its_own(tmp_path: Path) -> None:
    for module in ("torch", "onnx", "onnxruntime", "faster_coco_eval", "cv2"):
        pytest.importorskip(module)
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(sample_path(), images / "sample.jpg")
    command = [sys.executable, "-c", _HOST, str(tmp_path), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [len(line) for line in lines if line[0] not in ("wrote", "python", "native")] == [2]  # the boxes
    for name, number in (line[1:] for line in lines if line[0] == "wrote"):
        assert int(number) > 100
        assert [line[1] for line in lines if line[0] == name] == [str(n) for n in range(int(number))]


_CHATTY = """
import logging, os, warnings
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.plugin.stages import Availability, Exporter
YOLOTRT_API = 1
def say(where):
    print(where, "python")
    os.write(1, f"{where} native\\n".encode())
say("import")
class Stage(Exporter):
    name, stage_version, sources, Options = "chatty", 1, ("chatty",), NoOptions
    def available(self): return say("asked") or Availability(True)
    def fingerprint(self, options): return {}
    def export(self, source, request, options, out):
        say("stage")
        os.system("echo stage child")
        warnings.warn("stage warning")
        logging.getLogger("another").warning("stage another")
        raise RuntimeError("as planned")
@hookimpl
def yolotrt_exporters(): return say("hook") or [Stage()]
@hookimpl
def yolotrt_environment(): return {"CHATTY_QUIET": "1", "CHATTY_GIVEN": "1"}
@hookimpl
def yolotrt_stage_started(action): say(f"started {os.environ['CHATTY_QUIET']} {os.environ['CHATTY_GIVEN']}")
"""


@pytest.mark.parametrize("command", ["invoke", "yolotrt"])
def test_in_the_command_line_what_a_plugin_prints_spoils_no_result(command: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    information = site / "chatty-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "chatty.py").write_text(_CHATTY)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: chatty\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[yolotrt]\nchatty = chatty\n")
    model = tmp_path / "model.bin"
    model.write_bytes(b"x")
    arguments = ("build", "--weights", str(model), "--exporter", "chatty", "--builder", "onnxruntime")
    variables = {"PYTHONPATH": str(site), "CHATTY_GIVEN": "2"}
    ran = start(command, *arguments, cwd=tmp_path, store=tmp_path / "store", variables=variables)
    assert ran.code == 4, ran.err
    assert ran.out == ""
    for where in ("import", "hook", "asked", "started 1 2"):
        assert f"{where} python" in ran.err
        assert f"{where} native" in ran.err
    assert "stage python" not in ran.err
    log = Path(next(line for line in ran.err.splitlines() if line.startswith("log: ")).removeprefix("log: "))
    text = log.read_text()
    for said in ("python", "native", "child", "warning", "another"):
        assert f"stage {said}" in text
    assert "RuntimeError: as planned" in text
