"""Paths as users write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fake_stages import fake_plugin
from yolotrt_core import api
from yolotrt_core.api import Detector
from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError
from yolotrt_core.export import model_source
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.media import inputs
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store import location
from yolotrt_core.store.store import Store

PACKAGES = [Path(__file__).resolve().parents[3] / name for name in ("yolotrt_core", "plugins")]
NOBODYS = "~nobody-has-this-name/x"
TOO_LONG = "x" * 300


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    assert user_path("~/x.jpg") == Path("/homes/me/x.jpg")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert location.weights_cache() == Path("/homes/me/.cache/yolotrt/weights")


@pytest.mark.parametrize(
    ("text", "words"),
    [(NOBODYS, "starts with a home folder that does not exist"), ("a\0b", r"invalid path 'a\\x00b': it has a NUL")],
)
def test_a_text_that_means_no_path(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        user_path(text)


def test_what_is_there(tmp_path: Path) -> None:
    assert existing_path(tmp_path) == tmp_path
    assert existing_path(tmp_path / "x") is None
    with pytest.raises(UsageError, match=r"cannot read `x+`: file name too long") as raised:
        existing_path(TOO_LONG, "a hint")
    assert raised.value.hint == "a hint"


@pytest.mark.parametrize("text", [NOBODYS, TOO_LONG, "a\0b"])
@pytest.mark.parametrize(
    "use",
    [
        inputs.find_inputs,
        reader.refuse_missing,
        reader.check,
        lambda text: reader.read(text, ()),
        lambda text: Detector.open(engine=text),
        lambda text: model_source.resolve_source(text, cache_dir=Path()),
    ],
    ids=["find", "refuse_missing", "check", "read", "open", "resolve_source"],
)
def test_whoever_takes_a_path_refuses_what_is_none(use: Callable[[str], object], text: str) -> None:
    with pytest.raises(UsageError, match=r"does not exist|too long|NUL character"):
        use(text)


def test_a_store_of_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(location.STORE_VARIABLE, NOBODYS)
    with pytest.raises(UsageError, match="home folder"):
        location.open_store()
    with pytest.raises(UsageError, match="home folder"):
        Store(Path(NOBODYS))


def test_a_description_of_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    path.write_text(f"path: {NOBODYS}\nval: images\n")
    with pytest.raises(UsageError, match="home folder"):
        reader.list_images(path)


def test_only_one_place_finds_home_folders() -> None:
    found = {
        path.name
        for package in PACKAGES
        for path in package.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("expanduser", "Path.home"))
    }
    assert found == {"paths.py"}


def test_python_programs_may_give_folders_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.txt").write_text("2 3")
    registry = Registry.of(fake_plugin())
    given = {"store": "~/store", "imgsz": (32, 64), "precision": "fp16"}
    built = api.build("~/model.txt", out="~/out", registry=registry, **given)
    assert built.path.parent == tmp_path / "out"
    assert built.path.is_file()
    with Detector.open("~/model.txt", registry=registry, **given) as opened:
        assert opened.spec == built.spec
    assert (tmp_path / "store").is_dir()
