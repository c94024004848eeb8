"""What the tests build, on what disks, and in what processes; run as a script it is such a process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from yolotrt_core.errors import ArtifactError
from yolotrt_core.store.action import Action, PluginIdentity
from yolotrt_core.store.errors import MissingArtifactError
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


class Disk:
    """A memory disk of its own, mounted for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, mode: str) -> None:
        """Make it read-only, `ro`, or writable again, `rw`."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], check=True)

    def fill(self, leave_bytes: int = 0) -> Path:
        """Take all space but `leave_bytes`; return the file that holds it."""
        filler = self.folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with filler.open("r+b") as file:
            file.truncate(max(filler.stat().st_size - leave_bytes, 0))
        return filler


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


def _nursery(store: Store, settings: dict[str, Any]) -> object:
    """For each line, a folder and a number, fork a process that builds endlessly; tell its number and its death."""
    for line in sys.stdin:
        folder, number = json.loads(line)
        child = os.fork()
        if not child:
            _build_endlessly(Store(Path(folder)), {"number": number})
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
    return None


def _chain(store: Store, settings: dict[str, Any]) -> object:
    """Build, again and again, an action and one that needs its output, as the pipeline does."""
    retries, builds = 0, 0
    while builds < settings["builds"]:
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
            # A file may go in the moment between two steps; the pipeline then starts over, too.
            retries += 1
    return {"builds": builds, "retries": retries}


def _collect(store: Store, settings: dict[str, Any]) -> object:
    """Collect, again and again, everything that is not in use, until a file says to stop."""
    runs, deleted = 0, 0
    while not Path(settings["stop"]).exists():
        deleted += len(store.gc(0).records)
        runs += 1
        time.sleep(0.02)
    return {"runs": runs, "deleted": deleted}


def _read(store: Store, settings: dict[str, Any]) -> object:
    """As another user: find, name and read an action's output, then fail to make another."""
    os.setgroups([])
    os.setgid(settings["user"])
    os.setuid(settings["user"])
    record, from_cache = store.obtain(action(1), maker(1), verify=True)
    store.set_ref("mine", record.key)
    data = store.read(record.outputs["model.onnx"].sha256)
    try:
        store.obtain(action(2), maker(2))
    except ArtifactError as err:
        error = str(err)
    return {"from_cache": from_cache, "sha256": hashlib.sha256(data).hexdigest(), "error": error}


def _hold(store: Store, settings: dict[str, Any]) -> object:
    """Start to build, say so, and stay there until released."""

    def make(work: Path) -> Mapping[str, Json]:
        print("building", flush=True)
        sys.stdin.readline()
        return maker(settings["number"])(work)

    chosen = action(settings["number"], inputs=settings.get("inputs", {"source": "cd" * 32}))
    _, from_cache = store.obtain(chosen, make)
    return {"from_cache": from_cache}


TASKS = {
    "build": _build,
    "nursery": _nursery,
    "read": _read,
    "chain": _chain,
    "collect": _collect,
    "hold": _hold,
}


def main() -> None:
    task, root, settings = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    # Imported late by the store; here so that all processes begin from the same point.
    import filelock  # noqa: F401

    import yolotrt_core.store.bytes_cache
    import yolotrt_core.store.execution
    import yolotrt_core.store.gc  # noqa: F401

    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(TASKS[task](Store(Path(root)), json.loads(settings))))


if __name__ == "__main__":
    main()
