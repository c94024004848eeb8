"""Numbers and lists as a person would say them."""

from __future__ import annotations

import pytest

from yolotrt_core.wording import counted, not_installed


@pytest.mark.parametrize(
    ("number", "noun", "said"), [(1, "box", "1 box"), (2, "fp32 box", "2 fp32 boxes"), (0, "picture", "0 pictures")]
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
