"""Int8 of the embedded model as users start it: ranges out of the store, into a cache, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yolotrt_core.calibration.ranges import int8_scale, read_ranges
from yolotrt_core.calibration.tensorrt_cache import parse_cache
from yolotrt_core.export.model_source import sample_path

from .conftest import Run

_INT8 = ("--builder", "onnxruntime", "--precision", "int8")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    shutil.copy(sample_path(), place / "one.jpg")
    return place


def test_ranges_and_cache_go_out_and_come_back(run: Run, warm: Path, images: Path, tmp_path: Path) -> None:
    here, store = tmp_path / "here", warm / "store"
    chosen = (*_INT8, "--calib-data", str(images))
    built = run("build", *chosen, "--json", "--out", "first", store=store)
    assert built.code == 0, built.err
    assert "only 1 calibration image: at least 64 are recommended" in built.err
    first = json.loads(built.out)
    assert first["gate"]["passed"] is True
    assert [s["step"] for s in first["steps"]] == ["export", "simplify", "parity", "calibrate", "int8", "build"]
    for arguments in (("ranges",), ("cache", "--cache-version", "10.3.0", "--cache-algorithm", "minmax")):
        ran = run("artifacts.export", "--kind", *arguments, *chosen, "--out", "taken", store=store)
        assert ran.code == 0, ran.err
    ranges = read_ranges(here / "taken" / "parts-ranges.json")
    cache = parse_cache((here / "taken" / "parts.cache").read_text(), "cache")
    assert (cache.version, cache.algorithm) == (100300, "MinMaxCalibration")
    assert cache.scales == {name: int8_scale(amax) for name, amax in ranges.tensors.items()}
    for file in ("parts-ranges.json", "parts.cache"):
        again = run("build", *_INT8, "--calibrator", "import", "--import-file", f"taken/{file}", "--json", store=store)
        assert again.code == 0, again.err
        engine = json.loads(again.out)["engine"]
        assert (here / engine).read_bytes() == (here / first["engine"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("build", *_INT8), 2, "calibrator `percentile` needs images, but `--calib-data` was not given"),
        (("build", *_INT8, "--calib-data", "nowhere"), 2, "the data set `nowhere` does not exist"),
        (("build", *_INT8, "--calib-data", "."), 2, "no image in `.`"),
        (("build", *_INT8, "--calib-data", ".", "--calib-images", "0"), 2, "`--calib-images` expects a whole number"),
        (("build", *_INT8, "--calibrator", "import"), 2, "calibrator `import` needs a file"),
        (
            ("build", *_INT8, "--calib-data", ".", "--max-drop", "2"),
            2,
            "`--max-drop` expects a number, at least 0 and at most 1",
        ),
        (("build", *_INT8, "--calib-data", ".", "--int8-stem", "maybe"), 2, "`--int8-stem` expects `on` or `off`"),
    ],
)
def test_refusals(run: Run, warm: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    ran = run(*arguments, store=warm / "store")
    assert message in ran.err
    assert ran.code == code
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_a_cache_needs_to_know_its_reader(run: Run, warm: Path, images: Path) -> None:
    chosen = (*_INT8, "--calib-data", str(images))
    assert run("build", *chosen, store=warm / "store").code == 0
    for arguments, message in (
        ((), "needs `--cache-version`"),
        (("--cache-version", "ten"), "expected a TensorRT version such as 10.3.0, found `ten`"),
        (("--cache-version", "10.3.0", "--cache-algorithm", "kl"), "expects `entropy2` or `minmax`, found `kl`"),
    ):
        ran = run("artifacts.export", "--kind", "cache", *arguments, *chosen, "--out", "taken", store=warm / "store")
        assert ran.code == 2
        assert message in ran.err
