"""What modules import is read from their text: everywhere in it, and without importing anything."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from yolotrt_core.testing.closure import Closure

MODULES: Mapping[str, str] = {
    "__init__": "def open_it():\n    from imagined.late import run\n    return run\n",
    "work": "import json\nfrom imagined import near, LIMIT\nfrom . import beside\nimport no_such_tool.part\n"
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from imagined import types\n"
    "else:\n    import imagined.real\n",
    "near": "raise RuntimeError('imported')\ndef f():\n    from imagined.far import g\n",
    "beside": "from .near import f\nfrom .known import h\n",
    "known": "import imagined.unseen\n",
    **dict.fromkeys(("far", "late", "real", "types", "unseen"), ""),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imagined").mkdir()
    for name, text in MODULES.items():
        (tmp_path / "imagined" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("package")
def test_imports_of_imports_are_followed() -> None:
    closure = Closure({"imagined"}, {"imagined.known"})
    found = closure.unnamed(("imagined.work", "imagined/data.bin"))
    assert found.keys() == {f"imagined{name}" for name in ("", ".near", ".beside", ".real", ".far", ".late")}
    assert found["imagined.far"] == "imagined.near"
    named = ("imagined.work", *found)
    assert closure.unnamed(named) == {}
    assert closure.unnamed(set(named) - {"imagined.far"}) == {"imagined.far": "imagined.near"}


@pytest.mark.usefixtures("package")
def test_work_begins_in_the_stage_s_methods() -> None:
    begins = importlib.import_module("imagined").open_it
    assert Closure({"imagined"}, ()).unnamed((), [begins]) == {"imagined.late": "open_it"}
    assert Closure({"imagined"}, ()).unnamed(("imagined.late",), [begins]) == {}
