"""Locations of the store and of downloaded checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from yolotrt_core.files.paths import user_path
from yolotrt_core.store.store import Store

STORE_VARIABLE = "YOLOTRT_STORE"


def open_store(store: str | Path | Store | None = None) -> Store:
    """Return the given store, or the default one."""
    return store if isinstance(store, Store) else Store(store or default_store())


def default_store() -> Path:
    """Return the folder of the store: YOLOTRT_STORE, else the clone's artifacts/, else the user's cache."""
    named = os.environ.get(STORE_VARIABLE)
    if named:
        return user_path(named)
    root = Path(__file__).resolve().parents[2]
    if (root / "tasks.py").is_file() and (root / "artifacts" / "README.md").is_file():
        return root / "artifacts"
    return _user_cache() / "artifacts"


def weights_cache() -> Path:
    """Return the folder of downloaded checkpoints."""
    return _user_cache() / "weights"


def _user_cache() -> Path:
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "yolotrt"
