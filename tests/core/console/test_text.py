"""Numbers, lists and foreign texts as a person would say them."""

from __future__ import annotations

import pytest

from yolotrt_core.console.text import counted, first_line, not_installed, printable


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(1, "box", "1 box"), (2, "fp32 box", "2 fp32 boxes"), (3, "class", "3 classes"), (0, "image", "0 images")],
)
def test_counted(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (["a"], "`a` is not installed"),
        (["a", "b"], "`a` and `b` are not installed"),
        (["a", "b", "c"], "`a`, `b` and `c` are not installed"),
    ],
)
def test_not_installed(packages: list[str], said: str) -> None:
    assert not_installed(packages) == said


def test_foreign_texts_stay_on_one_line() -> None:
    assert printable("a\n\x1b[2Jb") == "a??[2Jb"
    assert first_line(ValueError(" first\n second ")) == "first second"
    assert len(first_line(ValueError("a" * 1000))) == 300
    assert first_line(KeyError()) == "KeyError"
