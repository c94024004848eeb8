"""A plugin that `plugin.new` wrote, made findable, and the commands of a guide, made runnable in this environment."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

_MAIN = "from yolotrt_core.cli import main; main()"


def install(folder: Path) -> None:
    """Do what `pip install -e .` does, without pip: with `folder` on the path the plugin is found."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    information = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = [f"{name} = {module}" for name, module in project["entry-points"]["yolotrt"].items()]
    (information / "entry_points.txt").write_text("\n".join(["[yolotrt]", *entries, ""]))
    (folder.parent / "here").mkdir(exist_ok=True)  # to run commands in


def runnable(command: Sequence[str]) -> list[str]:
    """Turn `yolotrt ...`, `python ...` or `pytest ...` into that of this environment."""
    program, *rest = command
    first = {"yolotrt": ["-c", _MAIN], "python": [], "pytest": ["-m", "pytest", "-p", "no:cacheprovider"]}[program]
    return [sys.executable, *first, *rest]


def shown_commands(text: str) -> list[list[str]]:
    """Return the commands of the first indented block of a text, comments cut off."""
    block = re.search(r"\n((?:    [^\n]*\n)+)", text)
    assert block is not None
    lines = [line.partition("#")[0].split() for line in block[1].splitlines()]
    return [line for line in lines if line]
