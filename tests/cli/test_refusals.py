"""Wrong input: one clear line, the exit code of its kind, no traceback, nothing left behind."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest

from .conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("build", "--precision", "fp12"), 2, "`--precision` expects `fp32`, `fp16`"),
        (("build", "--weights", "missing.pt"), 2, "missing.pt"),
        (("build", "--builder", "tensort"), 3, "no builder named `tensort`"),
        (("build", "--exporter", "nope"), 3, "no exporter named `nope`"),
        (("build", "--tensorrt-workspace", "much"), 2, "`--tensorrt-workspace` expects a whole number of MiB"),
        (("build", "--imgsz", "641"), 2, "multiples of 32, found 641"),
        (("build", "--imgsz", "big"), 2, "`--imgsz` expects a side or height,width"),
        (("build", "--batch", "0"), 2, "`--batch` expects a whole number, at least 1"),
        (("build", "--dynamic", "maybe"), 2, "`--dynamic` expects `on` or `off`"),
        (("build", "--profile", "1x320x320"), 2, "`--profile` expects MIN:OPT:MAX"),
        (("build", "--dynamic", "off", "--profile", "1x32x32:1x32x32:1x32x32"), 2, "needs a dynamic engine"),
        (("build", "--recipe", "missing.toml"), 2, "cannot read the recipe"),
        (("detect", "missing.jpg"), 2, "no such file or folder: `missing.jpg`"),
        (("detect", "--conf", "1.5", "sample"), 2, "`--conf` expects a number, at least 0 and at most 1"),
        (("detect", "--format", "xml", "sample"), 2, "`--format` expects `json`, `jsonl`, `coco` or `yolo`"),
        (("detect", "--engine", "x.engine", "--precision", "fp32", "sample"), 2, "`--precision` sets how to build"),
        (("detect", "--engine", "missing.engine", "sample"), 2, "no such engine file: `missing.engine`"),
        (("detect", "--max-frames", "3", "sample"), 2, "`--max-frames` is for a video or live source"),
        (("artifacts.gc", "--keep-days", "soon"), 2, "`--keep-days` expects a number of days"),
        (("artifacts.export", "--kind", "plan", "--out", "x"), 2, "`--kind` expects `onnx`, `ranges`"),
    ],
)
def test_one_clear_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    ran = run(*arguments)
    assert ran.code == code, ran.err
    assert words in ran.err.splitlines()[0]
    assert ran.err.startswith("error: ")
    assert all(line.startswith(("error: ", "hint: ")) for line in ran.err.splitlines())
    assert ran.out == ""
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("[biuld]\nprecision = 'fp32'", "unknown name `biuld`"),
        ("[build]\nprecison = 'fp32'", "unknown name `precison` in table `[build]`"),
        ("[tensorrt]\nworkspce = 1", "unknown name `workspce` in table `[tensorrt]`"),
        ("[tensorrt]\nworkspace = 'x'", "`tensorrt.workspace` expects"),
        ("build = 3", "is not a table"),
        ("[build", "is not valid TOML"),
    ],
)
def test_a_bad_recipe(run: Run, tmp_path: Path, recipe: str, words: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe)
    ran = run("build", "--recipe", str(path))
    assert ran.code == 2
    assert words in ran.err
    assert not (tmp_path / "store").exists()


def _png_without_pixels() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_files_that_are_no_images(run: Run, warm: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.png").write_text("not an image")
    (bad / "notes.json").write_text("x")
    (bad / "nothing.png").write_bytes(_png_without_pixels())
    cases = {
        "empty.jpg": "is an empty file",
        "text.png": "cannot decode the image",
        "notes.json": "unsupported file suffix",
        "nothing.png": "has no pixels",
    }
    for name, words in cases.items():
        ran = run("detect", str(bad / name), store=warm / "store")
        assert ran.code == 2
        assert words in ran.err
        assert ran.err.count(words) == 1
        assert "Traceback" not in ran.err
        assert not (tmp_path / "here" / "detections").exists()
    ran = run("detect", str(tmp_path / "here"), store=warm / "store")
    assert ran.code == 2
    assert "no image or video in the folder" in ran.err
    ran = run("detect", str(bad / "*.gif"), store=warm / "store")
    assert "no image or video matches the pattern" in ran.err


def test_a_store_path_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run("build", "--store", str(tmp_path / "file"))
    assert ran.code == 5
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full disk needs root")
def test_a_full_disk_for_results(run: Run, warm: Path, tmp_path: Path) -> None:
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        ran = run("detect", "sample", "--out", str(small / "d"), store=warm / "store")
        assert ran.code == 5
        assert "cannot write to" in ran.err
        assert "no space left" in ran.err
    finally:
        subprocess.run(["umount", str(small)], check=True)
