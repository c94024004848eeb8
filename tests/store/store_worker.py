"""A small action to build, and the processes that build it; run as a script it is such a process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolotrt_core.store.action import Action, PluginIdentity
from yolotrt_core.store.failures import MissingArtifactError
from yolotrt_core.store.store import Store
from yolotrt_core.types import Json

GO = "go"


def action(number: int = 0, *, stage: str = "exporter", **changes: Any) -> Action:
    """An action of its own key for each number."""
    parts: dict[str, Any] = {
        "stage": stage,
        "plugin": PluginIdentity("torch", "yolotrt-core", 1, "ab" * 32),
        "request": {"batch": 1, "height": 640, "width": 640},
        "options": {"number": number, "opset": 17},
        "inputs": {"source": "cd" * 32},
        "tools": {"torch": "2.9.1"},
        "core_sha256": "ef" * 32,
    }
    return Action(**{**parts, **changes})


def content(number: int, name: str, size: int = 50_000) -> bytes:
    """The bytes that the action of a number writes: the same in every process."""
    return f"{name} of {number};".encode() * (size // 12)


def maker(number: int, seconds: float = 0.0, starts: Path | None = None) -> Callable[[Path], Mapping[str, Json]]:
    """A stage that writes two files of its own and one that all numbers share."""

    def make(work: Path) -> Mapping[str, Json]:
        if starts is not None:
            with starts.open("a") as file:
                file.write(f"{os.getpid()}\n")
        (work / "out" / "nested").mkdir()
        (work / "out" / "model.onnx").write_bytes(content(number, "model"))
        time.sleep(seconds)
        (work / "out" / "nested" / "reference.npz").write_bytes(content(number, "reference"))
        (work / "out" / "labels.txt").write_bytes(b"person\nbicycle\n" * 4000)
        return {"number": number}

    return make


def start(task: str, root: Path, **settings: Any) -> subprocess.Popen[str]:
    """Start a process that has imported everything and waits for `go`."""
    command = [sys.executable, __file__, task, str(root), json.dumps(settings)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()
    return process


def go(*processes: subprocess.Popen[str]) -> None:
    """Let processes begin, as nearly together as can be."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(GO + "\n")
        process.stdin.flush()


def answers(*processes: subprocess.Popen[str]) -> list[Any]:
    """Return what each process printed last, as JSON; fail with its errors if it failed."""
    found = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        found.append(json.loads(out.splitlines()[-1]))
    return found


def _build(store: Store, settings: dict[str, Any]) -> object:
    """Build one action."""
    number = settings["number"]
    starts = Path(settings["starts"]) if "starts" in settings else None
    make = maker(number, settings.get("seconds", 0.0), starts)
    record, from_cache = store.obtain(action(number), make, verify=settings.get("verify", False))
    return {"key": record.key, "from_cache": from_cache, "outputs": {n: b.sha256 for n, b in record.outputs.items()}}


def _build_endlessly(store: Store, settings: dict[str, Any]) -> object:
    """Build one action after another until killed."""
    number = settings["number"]
    while True:
        store.obtain(action(number), maker(number), force=number % 3 == 0)
        number += 1


def _chain(store: Store, settings: dict[str, Any]) -> object:
    """Build, again and again, an action and one that needs its output, as the pipeline does."""
    retries, builds = 0, 0
    until = time.monotonic() + settings["seconds"]
    while time.monotonic() < until:
        number = settings["number"] + builds % 3
        try:
            first, _ = store.obtain(action(number), maker(number))
            digest = first.outputs["model.onnx"].sha256

            def second(work: Path, digest: str = digest) -> Mapping[str, Json]:
                (work / "in").mkdir()
                store.copy_out(digest, work / "in" / "model.onnx")
                (work / "out" / "model.engine").write_bytes((work / "in" / "model.onnx").read_bytes()[::-1])
                return {}

            last, _ = store.obtain(action(number, stage="builder", inputs={"onnx": digest}), second)
            assert store.read(last.outputs["model.engine"].sha256) == content(number, "model")[::-1]
            builds += 1
        except MissingArtifactError:
            retries += 1
    return {"builds": builds, "retries": retries}


def _collect(store: Store, settings: dict[str, Any]) -> object:
    """Collect, again and again, everything that is not in use."""
    until = time.monotonic() + settings["seconds"]
    runs, deleted = 0, 0
    while time.monotonic() < until:
        deleted += len(store.gc(0).records)
        runs += 1
    return {"runs": runs, "deleted": deleted}


def _hold(store: Store, settings: dict[str, Any]) -> object:
    """Start to build, say so, and stay there until told to fail."""

    def make(work: Path) -> Mapping[str, Json]:
        print("building", flush=True)
        sys.stdin.readline()
        return maker(settings["number"])(work)

    chosen = action(settings["number"], inputs=settings.get("inputs", {"source": "cd" * 32}))
    _, from_cache = store.obtain(chosen, make)
    return {"from_cache": from_cache}


TASKS = {
    "build": _build,
    "endless": _build_endlessly,
    "chain": _chain,
    "collect": _collect,
    "hold": _hold,
}


def main() -> None:
    task, root, settings = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    # Imported late by the store; here so that all processes begin from the same point.
    import diskcache  # noqa: F401
    import filelock  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(TASKS[task](Store(Path(root)), json.loads(settings))))


if __name__ == "__main__":
    main()
