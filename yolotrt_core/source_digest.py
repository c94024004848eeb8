"""What tells one state of a stage's code from another, for cache keys: the text of its modules."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from yolotrt_core.errors import PluginError


@functools.cache
def source_digest(modules: tuple[str, ...], owner: str) -> str:
    """Return the SHA-256 over the named modules' source text, without importing them.

    Raises:
        PluginError: a module does not exist.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise PluginError(f"{owner} names the module `{name}` in `sources`, which does not exist")
        digest.update(name.encode() + b"\0" + hashlib.sha256(Path(spec.origin).read_bytes()).digest())
    return digest.hexdigest()
