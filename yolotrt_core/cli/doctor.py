"""`doctor`: what this machine can do, and what would make it do more."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.tasks import Flag, Given, make_task
from yolotrt_core.plugin.diagnostics import health, runs_here
from yolotrt_core.plugin.registered import OWN_DIST
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.location import default_store
from yolotrt_core.types import Json

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;.*extra == ['\"]([\w-]+)['\"].*)?$")
# What a missing extra costs; the extra's name is pyproject.toml's.
_DISABLES = {
    "": "everything",
    "torch": "exporting .pt checkpoints, parity checks, engines that run on the CPU",
    "tf": "exporting TensorFlow models",
    "opencv": "reading images: detect, calibration, evaluation",
    "rtx": "building TensorRT-RTX engines",
    "tensorrt": "building TensorRT engines (needs a GPU; TensorRT-RTX does not)",
    "gpu": "running engines on a GPU",
    "nvjpeg": "decoding JPEG files on a GPU",
    "eval": "mAP figures",
}


# Distributions that install the same module.
_OTHERS = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorflow-cpu": ("tensorflow", "tf-nightly"),
}


def task(stages: Registry) -> Any:
    """Make the `doctor` task."""
    flags = (Flag("json", "Print one JSON document, see yolotrt_core/schemas/doctor.json", switch=True),)

    def body(given: Given) -> None:
        report = document(stages)
        if given["json"]:
            print(json.dumps(report, indent=2))
        else:
            _print(report)

    return make_task("doctor", "Say what this machine can do, and what each missing piece disables.", flags, body)


def document(stages: Registry) -> dict[str, Any]:
    """Return what `doctor --json` prints; its form is in yolotrt_core/schemas/doctor.json."""
    builders: list[Json] = []
    for found in stages.builders():
        builds, runs = health(found), runs_here(found)
        tools = dict(found.stage.fingerprint(found.stage.Options())) if builds.ok else {}
        builders.append(
            {
                "name": found.name,
                "builds": builds.ok,
                "runs": runs.ok,
                "tools": dict(tools),
                "reasons": [c.reason for c in (builds, runs) if not c.ok],
                "install": [c.install for c in (builds, runs) if not c.ok and c.install],
            }
        )
    return {
        "schema": 1,
        "yolotrt": metadata.version(OWN_DIST),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": f"{platform.system()} {platform.machine()}",
        "store": str(default_store()),
        "gpus": _gpus(),
        "builders": builders,
        "packages": _packages(),
        "broken_plugins": [{"plugin": b.plugin, "distribution": b.dist, "error": b.error} for b in stages.broken],
    }


def _gpus() -> list[Json]:
    """Ask nvidia-smi, which comes with every NVIDIA driver; no GPU or no driver is an empty list."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    try:
        asked = subprocess.run(
            [program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    fields = ("name", "driver", "compute_capability", "memory")
    lines = [line.split(", ") for line in asked.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, values, strict=False)) for values in lines]


def _packages() -> list[Json]:
    """List what the distribution's metadata asks for, by extra, with what is installed."""
    found: list[Json] = []
    for text in metadata.requires(OWN_DIST) or []:
        parsed = _REQUIREMENT.match(text)
        if parsed is None:
            continue
        name, wanted, extra = parsed[1], parsed[2], parsed[3] or ""
        if name == OWN_DIST or extra == "dev" or extra not in _DISABLES:
            continue
        try:
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = _other_version(name)
        install = f"pip install '{OWN_DIST}[{extra}]'" if extra else f"pip install {OWN_DIST}"
        found.append(
            {
                "package": name,
                "wanted": wanted,
                "installed": version,
                "extra": extra,
                "disables": None if version else _DISABLES[extra],
                "install": None if version else install,
            }
        )
    return found


def _other_version(name: str) -> str | None:
    """Return the version of a package that serves as well, e.g. opencv-python."""
    for other in _OTHERS.get(name, ()):
        try:
            return f"{metadata.version(other)} ({other})"
        except metadata.PackageNotFoundError:
            continue
    return None


def _print(report: dict[str, Any]) -> None:
    gpus = [f"{g['name']}, driver {g['driver']}, compute capability {g['compute_capability']}" for g in report["gpus"]]
    machine = [
        ("yolotrt", report["yolotrt"]),
        ("python", f"{report['python']['version']} ({report['python']['executable']})"),
        ("platform", report["platform"]),
        ("store", report["store"]),
        ("GPU", "; ".join(gpus) or "none found (nvidia-smi)"),
    ]
    print_table(("machine", ""), machine)
    print()
    builders = [
        (
            b["name"],
            "yes" if b["builds"] else "no",
            "yes" if b["runs"] else "no",
            " ".join(b["tools"].values()),
            "; ".join(dict.fromkeys(b["reasons"])),
        )
        for b in report["builders"]
    ]
    print_table(("builder", "builds", "runs", "with", "missing"), builders)
    print()
    lost: dict[str, list[str]] = {}  # several extras ask for the same package
    for p in report["packages"]:
        lost.setdefault(p["package"], []).extend([p["disables"]] if p["disables"] else [])
    versions = {p["package"]: p["installed"] or "missing" for p in report["packages"]}
    packages = [(name, versions[name], "; ".join(dict.fromkeys(parts))) for name, parts in lost.items()]
    print_table(("package", "version", "without it you lose"), packages)
    commands = [command for b in report["builders"] for command in b["install"]]
    commands += [p["install"] for p in report["packages"] if p["install"]]
    if commands:
        # Each on a line of its own, unindented and unbroken, so that it can be copied.
        print("\nto install what is missing:")
        print("\n".join(dict.fromkeys(commands)))
    if report["broken_plugins"]:
        print()
        broken = [(b["plugin"], b["distribution"], b["error"]) for b in report["broken_plugins"]]
        print_table(("broken plugin", "distribution", "error"), broken)
