"""The core's own text in cache keys: every module that an answer is made by is in the list of that answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from yolotrt_core.store import core_sources
from yolotrt_core.testing.closure import NO_PART, Closure

STORE = {f"yolotrt_core.store.{file.stem}" for file in (Path(core_sources.__file__).parent / "store").glob("*.py")}
LISTS = ("PIXELS", "STAGE", "PREDICTIONS", "GATE", "SENSITIVITY", "TIMING")
# What a list leaves out beside `NO_PART`, and why.
DATASET = {"yolotrt_core.datasets.reader": "lists images, whose digests are in the key"}
PLANS = {
    **DATASET,
    **dict.fromkeys(
        (f"yolotrt_core.{name}" for name in ("engine", "judged", "plans", "pipeline", "work")),
        "makes and names artifacts whose own digests are in the key",
    ),
}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "PIXELS": DATASET,
    "STAGE": {
        "yolotrt_core.calibration.images": "in the digest of the images, where a stage gets any",
        "yolotrt_core.export.parity": "in the identity of its own step",
    },
    "PREDICTIONS": PLANS,
    "GATE": PLANS,
    "SENSITIVITY": PLANS,
    "TIMING": PLANS,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_closed(name: str) -> None:
    modules = getattr(core_sources, name)
    known = {*NO_PART, *STORE, *LEFT_OUT[name]} - set(modules)
    assert Closure({"yolotrt_core"}, known).unnamed(modules) == {}
