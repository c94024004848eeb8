"""A digest follows the text of modules and files, and finds them without importing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolotrt_core.errors import PluginError
from yolotrt_core.store.code_digest import code_digest


def test_it_follows_the_text_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "some_work_module.py"
    module.write_text("a = 1\n")
    first = code_digest(("some_work_module",), "x")
    code_digest.cache_clear()
    assert code_digest(("some_work_module",), "x") == first
    code_digest.cache_clear()
    module.write_text("a = 2\n")
    assert code_digest(("some_work_module",), "x") != first
    for name, words in (
        ("no_such_module_here", "names the module `no_such_module_here`"),
        ("some_work_package/kernels/absent.cu", "names the file `some_work_package/kernels/absent.cu`"),
    ):
        with pytest.raises(PluginError, match=words):
            code_digest((name,), "x")


def test_it_follows_a_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_work_package" / "kernels").mkdir(parents=True)
    (tmp_path / "some_work_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    digests = []
    for text in ("one", "two", "one"):
        (tmp_path / "some_work_package" / "kernels" / "sum.cu").write_text(text)
        code_digest.cache_clear()
        digests.append(code_digest(("some_work_package/kernels/sum.cu",), "x"))
    assert digests[0] == digests[2] != digests[1]
