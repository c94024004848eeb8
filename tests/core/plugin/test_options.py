"""Options: one declaration serves flags, recipes and keys."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from yolotrt_core.console.text import nearest
from yolotrt_core.errors import PluginError, UsageError
from yolotrt_core.plugin.options import key_material, option, option_fields, resolve


@dataclass(frozen=True)
class Options:
    workspace: int = option(4096, unit="MiB", help="Workspace limit", minimum=256)
    share: float = option(0.5, help="A share", minimum=0.0, maximum=1.0)
    tf32: bool = option(True, help="Allow TF32")
    tool: Literal["sim", "slim"] = option("sim", help="Which tool")
    name: str | None = option(None, help="A name")
    table: Path | None = option(None, help="A file")
    threads: int = option(0, help="Threads", in_key=False)


def test_precedence_is_flag_then_recipe_then_default() -> None:
    assert resolve(Options, "x") == Options()
    assert resolve(Options, "x", {}, {"workspace": 512}).workspace == 512
    for text, share in ((".5", 0.5), ("5e-1", 0.5), ("+1.", 1.0), (" 0 ", 0.0)):
        assert resolve(Options, "x", {"share": text}).share == share
    assert resolve(Options, "x", {"workspace": "1024"}, {"workspace": 512}).workspace == 1024
    # A flag that equals the default still overrides the recipe.
    assert resolve(Options, "x", {"tf32": "on"}, {"tf32": False}).tf32 is True
    assert resolve(Options, "x", {"tf32": None}, {"tf32": False}).tf32 is False


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"workspace": "many"}, "`--x-workspace` expects a whole number of MiB, at least 256, found `many`"),
        ({"workspace": "12"}, "at least 256"),
        ({"workspace": "1.5"}, "whole number"),
        ({"workspace": "5_12"}, "whole number"),
        ({"workspace": "5 12"}, "whole number"),
        ({"workspace": "５１２"}, "whole number"),
        ({"workspace": "512.0"}, "whole number"),
        ({"workspace": "1e3"}, "whole number"),
        ({"workspace": ""}, "whole number"),
        ({"share": "0_1"}, "a number"),
        ({"share": "infinity"}, "a number"),
        ({"share": "1.5"}, "at least 0 and at most 1"),
        ({"share": "nan"}, "a number"),
        ({"share": "9" * 400}, "a number"),
        ({"threads": "9" * 400}, "a whole number"),
        ({"threads": "9" * 5000}, "a whole number"),
        ({"threads": str(2**63)}, "a whole number"),
        ({"tf32": "maybe"}, "`on` or `off`"),
        ({"tool": "slam"}, "`sim` or `slim`"),
    ],
)
def test_bad_flags_say_what_was_expected_and_found(flags: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(Options, "x", flags)
    assert words in caught.value.message


@pytest.mark.parametrize("recipe", [
    {"workspace": True}, {"workspace": 300.5}, {"workspace": math.inf}, {"threads": 10**400}, {"share": 10**400},
    {"share": "x"}, {"name": 3}, {"tool": []}, {"tf32": []}, {"table": ["a"]},
])  # fmt: skip
def test_bad_recipe_values_name_the_key(recipe: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"`x\."):
        resolve(Options, "x", {}, recipe)


def test_an_unknown_recipe_key_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(Options, "x", {}, {"workspce": 512})
    assert caught.value.hint == "did you mean `workspace`?"
    assert nearest("zzz", ["a", "b"]) == "known: `a`, `b`"


def test_key_material_has_declared_types_and_file_digests(tmp_path: Path) -> None:
    table = tmp_path / "t.bin"
    table.write_bytes(b"abc")
    material = key_material(resolve(Options, "x", {"share": "1", "table": str(table)}), "x")
    assert "threads" not in material
    assert material["share"] == 1.0
    assert isinstance(material["share"], float)
    assert material["table"] == hashlib.sha256(b"abc").hexdigest()
    moved = tmp_path / "elsewhere.bin"
    table.rename(moved)
    again = key_material(resolve(Options, "x", {"share": "1.0", "table": str(moved)}), "x")
    assert again == material
    with pytest.raises(UsageError, match="cannot be read"):
        key_material(resolve(Options, "x", {"table": str(table)}), "x")


def test_declarations_that_cannot_serve_users_are_refused() -> None:
    @dataclass(frozen=True)
    class NoHelp:
        a: int = 3

    @dataclass(frozen=True)
    class OtherType:
        a: list[int] | None = option(None, help="x")

    @dataclass
    class Mutable:
        a: int = option(1, help="x")

    for bad in (NoHelp, OtherType, Mutable, int):
        with pytest.raises(PluginError):
            option_fields(bad, "x")


def test_flags_are_spelled_with_dashes() -> None:
    @dataclass(frozen=True)
    class Dashes:
        big_name: int = option(1, help="x")

    assert option_fields(Dashes, "some_stage")[0].flag == "--some-stage-big-name"
