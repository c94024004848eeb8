"""Every hook is tested and documented."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from yolotrt_core import hookspecs

ROOT = Path(__file__).resolve().parents[2]
HOOKS = sorted(n for n in vars(hookspecs) if n.startswith("yolotrt_"))


@pytest.mark.parametrize("name", HOOKS)
def test_the_guide_has_its_exact_signature(name: str) -> None:
    guide = (ROOT / "plugins" / "README.md").read_text()
    signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "").replace("|", "\\|")
    assert f"| `{name}` | `{signature}` |" in guide


@pytest.mark.parametrize("name", HOOKS)
def test_it_is_implemented_in_some_test(name: str) -> None:
    tests = [p.read_text() for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__)]
    assert any(f"def {name}(" in text for text in tests)


def test_there_is_a_hook_for_every_kind_of_stage() -> None:
    from yolotrt_core.registry import KINDS

    plural = {kind: "passes" if kind == "pass" else f"{kind}s" for kind in KINDS}
    assert {f"yolotrt_{p}" for p in plural.values()} <= set(HOOKS)
