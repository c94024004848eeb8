"""Builds when the disk is full or read-only, and many at once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import call, start

pytestmark = pytest.mark.slow


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _here(tmp_path: Path) -> Path:
    here = tmp_path / "here"
    here.mkdir(exist_ok=True)
    return here


def test_a_full_disk(tmp_path: Path) -> None:
    with _mounted(tmp_path / "small", "size=1m") as small:
        ran = start("yolotrt", "build", "--builder", "onnxruntime", cwd=_here(tmp_path), store=small / "store")
        assert ran.code == 5, ran.err
        errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "no space left" in errors[0]
        assert "Traceback" not in ran.err
        assert not (tmp_path / "here" / "engines").exists()
        left = [p for p in small.rglob("*") if p.is_file() and p.stat().st_size > 200_000]
        assert left == []


def test_a_full_disk_can_be_looked_at_and_collected(tmp_path: Path) -> None:
    here = _here(tmp_path)
    with _mounted(tmp_path / "small", "size=64m") as small:
        store = small / "store"
        for size in ("96", "64"):
            built = start("yolotrt", "build", "--builder", "onnxruntime", "--imgsz", size, cwd=here, store=store)
            assert built.code == 0, built.err
        before = start("yolotrt", "artifacts.list", "--json", cwd=here, store=store)
        with (small / "filler").open("wb", buffering=0) as filler:
            for block in (1 << 20, 4 << 10):
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(block))
        assert os.statvfs(small).f_bfree == 0
        listed = start("yolotrt", "artifacts.list", "--json", cwd=here, store=store)
        assert (listed.code, listed.out) == (0, before.out), listed.err
        checked = start("yolotrt", "artifacts.verify", cwd=here, store=store)
        assert checked.code == 0, checked.err
        tried = start("yolotrt", "artifacts.gc", "--keep-days", "0", "--dry-run", "--json", cwd=here, store=store)
        collected = start("yolotrt", "artifacts.gc", "--keep-days", "0", "--json", cwd=here, store=store)
        assert (tried.code, collected.code) == (0, 0), collected.err
        would, did = json.loads(tried.out), json.loads(collected.out)
        assert would["blobs"]
        assert did["records"] == would["records"]
        assert os.statvfs(small).f_bfree * os.statvfs(small).f_bsize > 1 << 20
        checked = start("yolotrt", "artifacts.verify", cwd=here, store=store)
        assert checked.code == 0, checked.err
        again = start("yolotrt", "build", "--builder", "onnxruntime", "--imgsz", "64", cwd=here, store=store)
        assert again.code == 0, again.err


def test_a_read_only_store_refuses_to_build_and_serves_what_it_holds(tmp_path: Path, warm: Path) -> None:
    with _mounted(tmp_path / "ro", "size=64m") as mount:
        shutil.copytree(warm / "store", mount / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        here = _here(tmp_path)
        held = start("yolotrt", "build", "--builder", "onnxruntime", cwd=here, store=mount / "store")
        assert held.code == 0, held.err
        assert (here / held.out.strip()).is_file()
        new = start("yolotrt", "build", "--builder", "onnxruntime", "--imgsz", "96", cwd=here, store=mount / "store")
        assert new.code == 5, new.err
        assert "read-only" in new.err
        assert "Traceback" not in new.err


def test_a_full_disk_under_detect_leaves_only_the_results_so_far(tmp_path: Path, warm: Path) -> None:
    import cv2

    from yolotrt_core.export.model_source import sample_path

    image = cv2.imread(str(sample_path()))
    video = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, image.shape[1::-1])
    for _ in range(8):
        writer.write(image)
    writer.release()
    with _mounted(tmp_path / "small", "size=40k") as small:
        for source in (str(video), "sample"):
            ran = start(
                "yolotrt", "detect", source, "--out", str(small / "d"), cwd=_here(tmp_path), store=warm / "store"
            )
            assert ran.code == 5, ran.err
            assert "hint: " in ran.err
            assert "WARN" not in ran.err
            assert all(p.name.endswith(".json.partial") for p in small.rglob("*") if p.is_file())


def test_gc_keeps_what_a_second_build_looks_up(tmp_path: Path, warm: Path) -> None:
    here = _here(tmp_path)
    store = tmp_path / "store"
    shutil.copytree(warm / "store", store)
    assert call("artifacts.gc", "--keep-days", "0", cwd=here, store=store).code == 0
    ran = call("build", "--builder", "onnxruntime", cwd=here, store=store)
    assert ran.code == 0
    assert " built " not in ran.err


def test_eight_processes_build_once(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("yolotrt"))
    environment = {**os.environ, "YOLOTRT_STORE": str(tmp_path / "store")}
    running = []
    for number in range(8):
        command = [
            program,
            "build",
            "--builder",
            "onnxruntime",
            "--imgsz",
            "96",
            "--out",
            str(tmp_path / f"out{number}"),
        ]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    told = [p.communicate(timeout=300) for p in running]
    assert [p.returncode for p in running] == [0] * 8, told
    built = re.findall(r"^(\w+) +\w+ +built ", "".join(err for _, err in told), flags=re.MULTILINE)
    assert sorted(built) == sorted(["export", "simplify", "parity", "fp16", "build"])
    engines = {Path(out.strip()).read_bytes() for out, _ in told}
    assert len(engines) == 1


@pytest.mark.parametrize("command", ["yolotrt", "invoke"])
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, " by SIGTERM")])
def test_a_signal_leaves_no_trace_and_the_next_build_works(
    tmp_path: Path, command: str, number: signal.Signals, code: int, word: str
) -> None:
    program = [str(Path(sys.executable).with_name(command))]
    if command == "invoke":
        program += ["--search-root", str(Path(__file__).resolve().parents[2])]
    store = tmp_path / "store"
    environment = {**os.environ, "YOLOTRT_STORE": str(store)}
    arguments = ["build", "--builder", "onnxruntime", "--imgsz", "96"]
    running = subprocess.Popen(
        [*program, *arguments],
        # A test run in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment,
        cwd=_here(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list(store.glob("work/*/out")) and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == code, err
    assert out == ""
    assert err.splitlines()[-1] == f"cancelled{word}"
    assert "Traceback" not in err
    assert not list(store.glob("work/*/out/*"))
    assert call(*arguments, cwd=_here(tmp_path), store=store).code == 0
