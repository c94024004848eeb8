"""Whole-process times beside a peer's, in one run, in shuffled order.

    python tests/bench/processes.py --weights yolov5n.pt --peer-python ../peer/bin/python

Prints a table: median of ours, median of the peer's, ratio. The peer's environment holds upstream
`yolov5` 7.0.14 with onnxsim (its own simplifier), and `dvc`; it stays outside the project.

- build from nothing (fp16, TensorRT-RTX or what `doctor` shows) against upstream's export with simplify;
- a build that has nothing to do against `dvc repro` of three stages that have nothing to do;
- `invoke --list` against `invoke --list` of an empty task file.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_UPSTREAM = """
import sys
from yolov5 import export
export.run(weights=sys.argv[1], include=["onnx"], simplify=True, opset=17, imgsz=(640, 640))
"""


@dataclass(frozen=True)
class Case:
    """One process to time: `prepare` runs before each start and is not timed."""

    name: str
    command: list[str]
    folder: Path
    prepare: Callable[[], None] | None = None


def _seconds(case: Case, environment: dict[str, str]) -> float:
    if case.prepare:
        case.prepare()
    began = time.perf_counter()
    done = subprocess.run(case.command, cwd=case.folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{case.name} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    weights, peer = options.weights.resolve(), options.peer_python.absolute()
    with tempfile.TemporaryDirectory() as folder:
        pairs = _pairs(Path(folder), weights, peer)
        environment = {
            **os.environ,
            "YOLOTRT_STORE": str(Path(folder) / "store"),
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
            "YOLO_AUTOINSTALL": "false",
            "DVC_NO_ANALYTICS": "1",
        }
        print(f"{'what':34} {'ours':>8} {'peer':>8} {'ratio':>7}   median of {options.rounds} (s)")
        for name, ours, theirs in pairs:
            times: dict[str, list[float]] = {ours.name: [], theirs.name: []}
            for case in (ours, theirs):  # one start each to warm the disk
                _seconds(case, environment)
            for _ in range(options.rounds):
                for case in random.sample((ours, theirs), 2):
                    times[case.name].append(_seconds(case, environment))
            a, b = (statistics.median(times[c.name]) for c in (ours, theirs))
            print(f"{name:34} {a:8.3f} {b:8.3f} {a / b:7.2f}   peer: {theirs.name}")


def _pairs(folder: Path, weights: Path, peer: Path) -> list[tuple[str, Case, Case]]:
    here, there = folder / "ours", folder / "peer"
    here.mkdir()
    there.mkdir()
    copy = there / weights.name
    shutil.copy(weights, copy)
    invoke = [str(Path(sys.executable).with_name("invoke")), "--search-root", str(ROOT)]
    build = [*invoke, "build", "--weights", str(weights), "--precision", "fp16"]

    def forget() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        shutil.rmtree(here / "engines", ignore_errors=True)

    def forget_peer() -> None:
        copy.with_suffix(".onnx").unlink(missing_ok=True)

    _dvc_project(there, peer)
    empty = folder / "empty"
    empty.mkdir()
    (empty / "tasks.py").write_text("from invoke import task\n\n@task\ndef nothing(c):\n    pass\n")
    dvc = [str(peer.with_name("dvc")), "repro"]
    bare = [str(Path(sys.executable).with_name("invoke")), "--list"]
    return [
        (
            "build yolov5n fp16 from nothing",
            Case("ours", build, here, forget),
            Case("upstream export --simplify", [str(peer), "-c", _UPSTREAM, str(copy)], there, forget_peer),
        ),
        ("build with nothing to do", Case("ours", build, here), Case("dvc repro", dvc, there)),
        ("invoke --list", Case("ours", [*invoke, "--list"], here), Case("invoke --list, one task", bare, empty)),
    ]


def _dvc_project(folder: Path, peer: Path) -> None:
    dvc = str(peer.with_name("dvc"))
    subprocess.run([dvc, "init", "--no-scm", "-q"], cwd=folder, check=True)
    (folder / "a.bin").write_bytes(os.urandom(8 << 20))
    for name, source, target in (("one", "a.bin", "b.bin"), ("two", "b.bin", "c.bin"), ("three", "c.bin", "d.bin")):
        command = [dvc, "stage", "add", "-q", "-n", name, "-d", source, "-o", target, f"cp {source} {target}"]
        subprocess.run(command, cwd=folder, check=True)
    subprocess.run([dvc, "repro", "-q"], cwd=folder, check=True)


if __name__ == "__main__":
    main()
