"""What tells one state of a stage's code from another, for cache keys: the text of its modules and data files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from yolotrt_core.errors import PluginError


@functools.cache
def source_digest(sources: tuple[str, ...], owner: str) -> str:
    """Return the SHA-256 over the text of what is named, without importing it.

    Args:
        sources: dotted names of modules, and files inside a package as `package/folder/file`.
        owner: names in errors whose sources they are.

    Raises:
        PluginError: a module or file does not exist.
    """
    digest = hashlib.sha256()
    for name in sorted(sources):
        file = source_file(name)
        if file is None:
            kind = "file" if "/" in name else "module"
            raise PluginError(f"{owner} names the {kind} `{name}` in its sources, which does not exist")
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def source_file(name: str) -> Path | None:
    """Return the file of a module, or of `package/folder/file`, without importing it; None if there is none."""
    package, _, inside = name.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / inside if inside else Path(spec.origin)
    return file if file.is_file() else None
