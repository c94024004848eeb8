"""A build takes each decision once: counted at the real functions, not at counters of our own."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from yolotrt_core.api import Engine, build_engine
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store

pytest.importorskip("onnxruntime", reason="builds with onnxruntime")
Build = Callable[..., Engine]


@dataclass
class Counts:
    """Calls while a build runs: hook calls by plugin, and parsed and hashed files by name."""

    claims: Counter[str] = field(default_factory=Counter)
    parsed: Counter[str] = field(default_factory=Counter)
    parsed_before_export: Counter[str] = field(default_factory=Counter)
    hashed: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in (self.claims, self.parsed, self.parsed_before_export, self.hashed):
            counter.clear()


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    from yolotrt_onnx import exporter

    found, load, digest, export = Counts(), onnx.load, hashlib.file_digest, exporter.export

    def counted_load(path: Any, *given: Any, **named: Any) -> Any:
        found.parsed[Path(path).name] += 1
        return load(path, *given, **named)

    def counted_digest(stream: Any, *given: Any) -> Any:
        found.hashed[Path(stream.name).name] += 1
        return digest(stream, *given)

    def noted_export(*given: Any) -> Any:
        found.parsed_before_export = Counter(found.parsed)
        return export(*given)

    monkeypatch.setattr(onnx, "load", counted_load)
    monkeypatch.setattr(hashlib, "file_digest", counted_digest)
    monkeypatch.setattr(exporter, "export", noted_export)
    return found


@pytest.fixture
def run(counts: Counts, toy_yolo: Callable[..., Any], store: Store, tmp_path: Path) -> Build:
    model = toy_yolo()
    onnx.helper.set_model_props(model, {"names": "{0: 'a', 1: 'b', 2: 'c'}", "stride": "4"})
    (tmp_path / "source.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "images").mkdir()
    for number in range(3):
        frame = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), frame)
    registry = Registry.discover()

    def counted(name: str, claim: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any) -> Any:
            counts.claims[name] += 1
            return claim(source)

        return call

    for impl in registry.manager.hook.yolotrt_select_exporter.get_hookimpls():
        impl.function = counted(impl.plugin_name, impl.function)

    def build(**settings: Any) -> Engine:
        wanted = BuildSettings(
            weights=tmp_path / "source.onnx", builder="onnxruntime", calib_data=tmp_path / "images", **settings
        )
        return build_engine(wanted, store=store, registry=registry, out=tmp_path / "out")

    return build


def _assert_once(counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    assert set(counts.claims.values()) == {1}
    assert {name: counts.hashed[name] for name in ("0.png", "1.png", "2.png")} == {f"{n}.png": 1 for n in range(3)}
    warnings = Counter(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    assert warnings["only 3 calibration images: at least 64 are recommended"] == 1
    assert set(warnings.values()) == {1}


@pytest.mark.parametrize("precision", ["int8", "fp16", "auto"])
def test_a_build_decides_once(precision: str, run: Build, counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    engine = run(precision=precision)
    assert not engine.from_cache
    _assert_once(counts, caplog)
    assert counts.parsed_before_export == {"source.onnx": 1}
    assert counts.parsed["source.onnx"] == 2
    counts.clear()
    caplog.clear()
    assert run(precision=precision).from_cache
    _assert_once(counts, caplog)
    assert counts.parsed == {"source.onnx": 1}


def test_evaluation_images_are_hashed_once(run: Build, counts: Counts, tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    for number in range(2):
        frame = np.random.default_rng(9 + number).integers(0, 256, (64, 64, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "eval" / f"eval{number}.png"), frame)
    for _ in range(2):
        counts.clear()
        run(precision="int8", eval_data=tmp_path / "eval")
        assert [counts.hashed[f"eval{number}.png"] for number in range(2)] == [1, 1]


def test_an_image_that_changed_is_hashed_again(counts: Counts, tmp_path: Path) -> None:
    from yolotrt_core.calibration.images import ImageDigests

    digests, image = ImageDigests(), tmp_path / "a.png"
    image.write_bytes(b"one")
    first = digests.of(image)
    assert (digests.of(image), counts.hashed["a.png"]) == (first, 1)
    image.write_bytes(b"two")
    assert digests.of(image) != first
    assert counts.hashed["a.png"] == 2
