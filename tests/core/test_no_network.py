"""Nothing that yolotrt runs opens an internet socket or keeps an identifier of the user, as onnxruntime 1.32 does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolotrt_core.export.model_source import sample_path

# In a network of its own without a route, so that nothing is really sent.
_TRACED = ("unshare", "-rn", "strace", "-f", "-qq", "-e", "trace=%network", "-o")
# An int8 build imports onnxruntime in every plugin that uses it: exporter, calibrator, builder, gate. With its
# telemetry, it writes an identifier when imported and opens the first internet socket nine seconds later.
_BUILD_AND_DETECT = """
import os, sys, time
began = []
def check(event, arguments):
    if event == "import" and arguments[0] == "onnxruntime":
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
        began.append(time.monotonic())
sys.addaudithook(check)
from yolotrt_core import BuildSettings, Detector, build
images, seconds = sys.argv[1], float(sys.argv[2])
common = {"store": "store", "builder": "onnxruntime", "imgsz": 320, "precision": "int8", "calib_data": images}
engine = build(out="engine", **common)
with Detector.open(engine=engine.path) as detector:
    assert len(list(detector.detect_files([images + "/sample.jpg"]))) == 1
time.sleep(max(0, began[0] + seconds - time.monotonic()))
"""


def _build_and_detect(folder: Path, seconds: float, before: tuple[str, ...] = ()) -> None:
    for module in ("torch", "onnx", "onnxruntime", "faster_coco_eval", "cv2"):
        pytest.importorskip(module)
    (folder / "images").mkdir()
    shutil.copy(sample_path(), folder / "images" / "sample.jpg")
    home = str(folder / "home")
    environment = {**os.environ, "HOME": home, "XDG_CACHE_HOME": home, "ORT_DISABLE_TELEMETRY": "0"}  # overruled
    command = [*before, sys.executable, "-c", _BUILD_AND_DETECT, "images", str(seconds)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_build_and_a_detection_send_nothing(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    missing = [tool for tool in ("unshare", "strace") if shutil.which(tool) is None]
    works = not missing and subprocess.run([*_TRACED, str(log), "true"], capture_output=True).returncode == 0
    _build_and_detect(tmp_path, *((12, (*_TRACED, str(log))) if works else (0, ())))
    assert [p for p in tmp_path.rglob("*") if "microsoft" in p.name.lower() or "deviceid" in p.name] == []
    if not works:
        pytest.skip(f"sockets were not checked: {', '.join(missing) or 'tracing'} not available")
    assert [call for call in log.read_text().splitlines() if "AF_INET" in call] == []


def test_a_program_that_imported_onnxruntime_first_is_warned(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").touch()  # the real one would start its telemetry
    code = "import onnxruntime, yolotrt_core, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, warned in (("0", True), ("1", False)):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ORT_DISABLE_TELEMETRY": given}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"
        assert ("onnxruntime was imported before yolotrt" in done.stderr) == warned
