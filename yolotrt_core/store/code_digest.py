"""Digests of source code for cache keys; whole packages are read without importing them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from yolotrt_core.errors import PluginError

# Core packages that each kind of result depends on. Command line, console, store and plugin registry are excluded:
# an edit there must not invalidate artifacts.
PIXELS = ("types", "media", "inference", "calibration")  # from the bytes of an image to the network's input
STAGE = ("types", "serialization", "datasets", "export", "calibration", "pipeline")
PREDICTIONS = (*PIXELS, "evaluation")
GATE = (*PREDICTIONS, "datasets")
SENSITIVITY = (*PREDICTIONS, "pipeline", "tuning")
TIMING = (*PIXELS, "benchmark", "tuning")


@functools.cache
def core_digest(packages: tuple[str, ...]) -> str:
    """Return the SHA-256 over packages of the core, one of the tuples above."""
    return code_digest(tuple(f"yolotrt_core.{name}" for name in packages), "the core")


# Cached per process: later edits do not change the imported modules.
@functools.cache
def code_digest(sources: tuple[str, ...], owner: str) -> str:
    """Return the SHA-256 over the source of modules, packages (recursively) and single files.

    Args:
        sources: dotted names of packages or modules, and files as `package/folder/file`.
        owner: owner of the sources, for errors.

    Raises:
        PluginError: a source does not exist.
    """
    digest = hashlib.sha256()
    for name in sorted(set(sources)):
        files = list(_files_of(name))
        if not files:
            kind = "file" if "/" in name else "module"
            raise PluginError(f"{owner} names the {kind} `{name}` in its sources, which does not exist")
        for path, file in files:
            digest.update(path.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files_of(name: str) -> Iterator[tuple[str, Path]]:
    """Yield each file of a source and its path relative to the source, without importing."""
    package, _, inside = name.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return
    origin = Path(spec.origin)
    if inside:
        file = origin.parent / inside
        if file.is_file():
            yield name, file
    elif spec.submodule_search_locations is None:
        yield name, origin
    else:
        for file in sorted(origin.parent.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield f"{name}/{file.relative_to(origin.parent).as_posix()}", file
