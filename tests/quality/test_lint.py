"""Lint, format and types of the whole tree, and generated text that must be current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["cogapp", "-P", "--check", "--diff", "plugins/README.md", "yolotrt_core/cli/README.md"],
    ],
    ids=lambda c: " ".join(c[:2]),
)
def test_tool_is_content(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_exactly_what_readme_says() -> None:
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    command = ci.strip().splitlines()[-1]
    assert f"\n{command}\n" in readme
    assert "pytest" in command


def test_no_sentence_of_the_readme_lies_about_files() -> None:
    import re

    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "plugins/README.md",
        "yolotrt_core/cli/README.md",
        "artifacts/README.md",
        "tests/bench/README.md",
    ):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}, which is not there"


def test_what_commands_write_is_ignored_in_any_folder() -> None:
    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    written = ["detections/a.jpg", "tests/detections/a.jpg", "engines/m/m.onnx", "tests/cli/engines/m/m.onnx"]
    assert git("check-ignore", *written) == written
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
