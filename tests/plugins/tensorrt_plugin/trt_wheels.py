"""Genuine TensorRT wheels for tests, fetched from the package registry once and kept in the user's cache.

They are proprietary, so they are never part of the repository. NVIDIA's registry packages named `-libs`
of plain TensorRT hold no library: its bindings import only against stand-ins, which tell names and
signatures but cannot build. TensorRT-RTX comes complete.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

# What the bindings link to: the nine entry points of the real libraries, each answering null.
_STAND_IN = """
void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
"""


@dataclass(frozen=True)
class Release:
    """One release of the bindings: import name, distribution, and the libraries they link to."""

    module: str
    dist: str
    version: str
    libraries: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}-{self.version}"


def _plain(dist: str, version: str) -> Release:
    major = version.split(".")[0]
    libraries = tuple(f"lib{name}.so.{major}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"))
    return Release("tensorrt", dist, version, libraries)


def _rtx(version: str) -> Release:
    return Release(
        "tensorrt_rtx",
        "tensorrt-rtx-cu13-bindings",
        version,
        ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    )


RTX_OLD = _rtx("1.6.1.120")
RELEASES = (
    _plain("tensorrt-cu12-bindings", "10.3.0"),
    _plain("tensorrt-cu12-bindings", "10.16.1.11"),
    _plain("tensorrt-cu13-bindings", "11.4.0.106"),
    RTX_OLD,
    _rtx("1.7.1.116"),
)


def bindings(release: Release) -> Path:
    """Return a folder that holds a release's bindings and nothing else."""
    return _installed(f"{release.dist}-{release.version}", (f"{release.dist}=={release.version}",))


def complete_rtx(version: str) -> Path:
    """Return a folder for PYTHONPATH that makes `import tensorrt_rtx` this release, able to build."""
    wheels = tuple(f"tensorrt-rtx-cu13-{part}=={version}" for part in ("bindings", "libs"))
    folder = _installed(f"tensorrt-rtx-cu13-{version}", wheels)
    # The distribution `tensorrt-rtx-cu13` adds only this re-export, and comes as a source archive.
    package = folder / "tensorrt_rtx" / "__init__.py"
    package.parent.mkdir(exist_ok=True)
    package.write_text("from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n")
    return folder


def stand_ins(release: Release, folder: Path) -> Path:
    """Compile libraries that let a release's bindings be imported; `folder` is for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler `cc` to make stand-ins for TensorRT's libraries")
    source = folder / "stand_in.c"
    source.write_text(_STAND_IN)
    for name in release.libraries:
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolotrt" / "test-wheels"


def _installed(name: str, wheels: tuple[str, ...]) -> Path:
    cache = _cache() / f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            target = Path(temporary) / "target"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
            options = ["--disable-pip-version-check", "--retries", "1", "--timeout", "20", "--target", str(target)]
            done = subprocess.run([*command, *options, *wheels], capture_output=True, text=True, check=False)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
                pytest.skip(f"cannot install {', '.join(wheels)} from the package registry: {said[-1]}")
            target.rename(folder)
    return folder
