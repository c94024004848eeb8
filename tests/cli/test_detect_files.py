"""`detect` on files of unusual formats, truncated files and 12-bit images finds what it finds in the plain image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolotrt_core.export.model_source import sample_path

from .conftest import Run

_ENGINE = ("--builder", "onnxruntime", "--json")


def _by_file(text: str) -> dict[str, Any]:
    return {Path(image["path"]).name: image["detections"] for image in json.loads(text)["images"]}


def test_formats_and_truncated_files(run: Run, warm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    data = sample_path().read_bytes()
    for name, content in {
        "plain.jpg": data,
        "a.jfif": data,
        "b.mpo": data + data,
        "no-end.jpg": data[:-2],
        "cut.jpg": data[:-100],
        "half.jpg": data[: len(data) // 2],
        "phone.heic": b"x",
        "plain.txt": b"x",
    }.items():
        (folder / name).write_bytes(content)
    ran = run("detect", *_ENGINE, "--out", "out", str(folder), store=warm / "store")
    assert ran.code == 2
    found = _by_file(ran.out)
    assert found["plain.jpg"]
    assert found == dict.fromkeys(("plain.jpg", "a.jfif", "b.mpo", "no-end.jpg"), found["plain.jpg"])
    assert f"1 file of `{folder}` skipped, unsupported suffix: 1 .heic" in ran.err
    assert "no-end.jpg` lacks its last bytes, but no pixels: it is used" in ran.err
    assert "2 of 6 files could not be read completely" in ran.err
    for name in ("cut", "half"):
        assert f"{name}.jpg`: it is truncated, the rows from" in ran.err
    written = {p.name for p in (tmp_path / "here" / "out").iterdir()}
    assert written == {"plain.jpg", "a.jpg", "b.jpg", "no-end.jpg", "detections.json"}


def test_12_bit_images(run: Run, warm: Path, tmp_path: Path) -> None:
    plain, deep = tmp_path / "plain.png", tmp_path / "deep.png"
    image = cv2.imread(str(sample_path()))
    cv2.imwrite(str(plain), image)
    cv2.imwrite(str(deep), image.astype(np.uint16) << 4)
    store = tmp_path / "store"
    shutil.copytree(warm / "store", store)
    arguments = ("detect", *_ENGINE, "--out", "out", str(tmp_path / "*.png"))
    dark, scaled = (run(*arguments, *more, store=store) for more in ((), ("--image-bits", "12")))
    assert (dark.code, scaled.code) == (0, 0)
    assert _by_file(dark.out)["deep.png"] != _by_file(dark.out)["plain.png"] != []
    assert "deep.png` and maybe others have 16 bits per value, of which at most 12 are used" in " ".join(
        dark.err.split()
    )
    assert _by_file(scaled.out)["deep.png"] == _by_file(dark.out)["plain.png"]
    assert "16 bits" not in scaled.err
