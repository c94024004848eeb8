"""The wheel holds what it should, and works where nothing else is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_folders_entry_points_and_wheel_agree(wheel: Path) -> None:
    folders = {p.parent.name for p in (ROOT / "plugins").glob("*/__init__.py")}
    entries = set(PYPROJECT["project"]["entry-points"]["yolotrt"].values())
    listed = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert entries == folders
    assert {Path(p).name for p in listed} == folders | {"yolotrt_core"}
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.partition("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == folders | {"yolotrt_core"}
    for source in [*(ROOT / "yolotrt_core").rglob("*"), *(ROOT / "plugins").rglob("*")]:
        if source.is_file() and "__pycache__" not in source.parts and source.parent != ROOT / "plugins":
            relative = source.relative_to(ROOT)
            inside = relative.relative_to("plugins") if relative.parts[0] == "plugins" else relative
            assert inside.as_posix() in names, f"{relative} is not in the wheel"


def test_licence_and_size(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert wheel.stat().st_size < 4_000_000


@pytest.mark.slow
def test_an_empty_environment_has_help_for_every_task(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    install = [str(python), "-m", "pip", "install", "-q", "-c", constraints, str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    code = (
        "import importlib, pkgutil, yolotrt_core\n"
        "names = [m.name for m in pkgutil.walk_packages(yolotrt_core.__path__, 'yolotrt_core.')]\n"
        "names = [n for n in names if n != 'yolotrt_core.testing']\n"  # needs pytest, which its users have
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    program = str(tmp_path / "venv" / "bin" / "yolotrt")
    tasks = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert tasks.returncode == 0, tasks.stderr
    names = [line.split()[0] for line in tasks.stdout.splitlines() if line.startswith("  ") and line[2] != " "]
    assert {"build", "detect", "doctor", "plugins", "artifacts.gc"} <= set(names)
    for name in names:
        done = subprocess.run([program, name, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
    done = subprocess.run([program, "build"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 3
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([program, "doctor"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "missing" in done.stdout
