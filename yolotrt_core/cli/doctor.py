"""`doctor`: available backends and missing dependencies of this machine."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from yolotrt_core.benchmark.machine import query_gpus
from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.plugin.diagnostics import health, runs_here
from yolotrt_core.plugin.options import resolve_settings
from yolotrt_core.plugin.registered import OWN_DIST
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.location import default_store
from yolotrt_core.types import Json

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# What an extra of pyproject.toml is required for.
_DISABLES = {
    "": "everything",
    "torch": "exporting .pt checkpoints, parity checks, engines that run on the CPU",
    "tf": "exporting TensorFlow models",
    "opencv": "reading images: detect, calibration, evaluation",
    "video": "reading videos and streams",
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


@dataclass(frozen=True, eq=False, repr=False)
class DoctorSettings:
    """Settings of `doctor`."""

    json: bool = json_option("doctor")


def task(registry: Registry) -> Any:
    """Make the `doctor` task."""

    def body(given: Given) -> None:
        report = document(registry)
        if resolve_settings(DoctorSettings, given).json:
            show(json.dumps(report, indent=2))
        else:
            _print(report)

    return make_task("doctor", "Show available backends and missing dependencies.", [DoctorSettings], body)


def document(registry: Registry) -> dict[str, Any]:
    """Return what `doctor --json` prints, as described in yolotrt_core/schemas/doctor.json."""
    builders: list[Json] = []
    for found in registry.builders():
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
        "broken_plugins": [{"plugin": b.plugin, "distribution": b.dist, "error": b.error} for b in registry.broken],
    }


def _gpus() -> list[Json]:
    fields = {"name": "name", "driver": "driver_version", "compute_capability": "compute_cap", "memory": "memory.total"}
    return [dict(zip(fields, values, strict=False)) for values in query_gpus(tuple(fields.values()))]


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Return whether a requirement belongs to this extra; the empty one is always installed."""
    marker = requirement.marker
    if marker is None or "extra" not in str(marker):
        return not extra
    return bool(extra) and marker.evaluate({"extra": extra})


def _packages() -> list[Json]:
    """List the requirements of the distribution by extra, with the installed versions."""
    from packaging.requirements import Requirement

    found: list[Json] = []
    requirements = map(Requirement, metadata.requires(OWN_DIST) or [])
    needed = [(r, extra) for r in requirements if r.name != OWN_DIST for extra in _DISABLES if _is_of(r, extra)]
    for requirement, extra in needed:
        name = requirement.name
        try:
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = _other_version(name)
        install = f"pip install '{OWN_DIST}[{extra}]'" if extra else f"pip install {OWN_DIST}"
        found.append(
            {
                "package": name,
                "wanted": str(requirement.specifier),
                "installed": version,
                "extra": extra,
                "disables": None if version else _DISABLES[extra],
                "install": None if version else install,
            }
        )
    return found


def _other_version(name: str) -> str | None:
    """Return the version of an equivalent package, e.g. opencv-python."""
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
    show()
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
    show()
    lost: dict[str, list[str]] = {}  # several extras require the same package
    for p in report["packages"]:
        lost.setdefault(p["package"], []).extend([p["disables"]] if p["disables"] else [])
    versions = {p["package"]: p["installed"] or "missing" for p in report["packages"]}
    packages = [(name, versions[name], "; ".join(dict.fromkeys(parts))) for name, parts in lost.items()]
    print_table(("package", "version", "required for"), packages)
    commands = [command for b in report["builders"] for command in b["install"]]
    commands += [p["install"] for p in report["packages"] if p["install"]]
    if commands:
        # One per line, unindented and unwrapped, for copying.
        show("\nto install what is missing:")
        show("\n".join(dict.fromkeys(commands)))
    if report["broken_plugins"]:
        show()
        broken = [(b["plugin"], b["distribution"], b["error"]) for b in report["broken_plugins"]]
        print_table(("broken plugin", "distribution", "error"), broken)
