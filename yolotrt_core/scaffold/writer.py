"""Writes a new plugin: a small package that installs, works, and holds its contract from the start."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from string import Template

from yolotrt_core.console.text import nearest
from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason
from yolotrt_core.files.paths import refuse_unwritable
from yolotrt_core.plugin.declaration_checks import RESERVED
from yolotrt_core.plugin.registered import KINDS, OWN_DIST, Kind

_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_NEEDS: Mapping[Kind, tuple[str, ...]] = {
    "exporter": ("numpy", "onnx>=1.19"),
    "pass": ("onnx>=1.19",),
    "calibrator": ("numpy", "onnx>=1.19", "onnxruntime>=1.20"),
    "builder": ("numpy", "onnxruntime>=1.20"),
    "postprocessor": ("numpy",),
}
# Commands of the new README; words in capitals are the reader's own files.
_USE: Mapping[Kind, str] = {
    "exporter": "    python -m $package.example                 # writes example.bin, a small model to try\n"
    "    yolotrt build --weights example.bin --precision fp16    # chosen by what the file holds\n"
    "    yolotrt build --weights example.bin --precision fp16 --exporter $name\n"
    "    yolotrt detect --weights example.bin sample",
    "pass": "    yolotrt build --precision fp16                 # runs in every build, here of the embedded model\n"
    "    yolotrt build --precision fp16 --$flag-run off",
    "calibrator": "    yolotrt build --precision int8 --calib-data IMAGES --calibrator $name",
    "builder": "    yolotrt build --builder $name              # of the embedded model\n"
    "    yolotrt detect --builder $name sample",
    "postprocessor": "    yolotrt detect --weights MODEL.onnx --onnx-head $name --onnx-names NAMES.txt sample",
}


def write_plugin(name: str, kind: str, parent: Path) -> Path:
    """Write a plugin with one working stage of a kind.

    Args:
        name: of the stage; lower case, as flags and recipes will have it.
        kind: exporter, pass, calibrator, builder or postprocessor.
        parent: the folder to put the package's folder in.

    Returns:
        The new folder, `parent/yolotrt-NAME`, with pyproject.toml, README.md, .gitignore, the
        package `yolotrt_NAME` and its tests.

    Raises:
        UsageError: a name that cannot be one or is taken, an unknown kind, a folder that has something in it.
        ArtifactError: the folder cannot be written.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind of stage `{kind}`", hint=nearest(kind, KINDS))
    if not _NAME.fullmatch(name):
        raise UsageError(f"a stage's name is lower-case letters, digits and `_`, found `{name}`")
    if name in RESERVED:
        raise UsageError(f"`{name}` is a name of yolotrt itself", hint="choose another name")
    package, folder = f"yolotrt_{name}", parent / f"yolotrt-{name.replace('_', '-')}"
    if importlib.util.find_spec(package) is not None:
        raise UsageError(f"the package `{package}` is installed already", hint="choose another name")
    refuse_unwritable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"`{folder}` is there already", hint="choose another name, or another folder with `--out`")
    values = {
        "name": name,
        "kind": kind,
        "package": package,
        "dist": folder.name,
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "flag": name.replace("_", "-"),
        "requires": ", ".join(f'"{each}"' for each in (f"{OWN_DIST}>={metadata.version(OWN_DIST)}", *_NEEDS[kind])),
    }
    values["use"] = Template(_USE[kind]).substitute(values)
    templates = resources.files("yolotrt_core.scaffold") / "templates"
    places = {"common": folder, kind: folder / package}
    try:
        for part, place in places.items():
            for template in (templates / part).iterdir():
                file = place / template.name.removesuffix(".tmpl")
                if file.name == "test.py":
                    file = folder / "tests" / f"test_{name}.py"
                elif file.name == "gitignore":  # a leading dot would hide the template from builds of the wheel
                    file = folder / ".gitignore"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    except OSError as err:
        shutil.rmtree(folder, ignore_errors=True)  # empty before, and half a plugin would be in the way of the next try
        raise ArtifactError(
            f"cannot write `{folder}`: {os_error_reason(err)}", hint="choose another folder with `--out`"
        ) from err
    return folder
