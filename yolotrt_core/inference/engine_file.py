"""Engine files on disk: the engine, its sidecar spec, and copies out of the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.files.paths import existing_path
from yolotrt_core.serialization import from_json, invalid_field
from yolotrt_core.store.store import Store
from yolotrt_core.types import EngineSpec

if TYPE_CHECKING:
    pass


def spec_path(engine: Path) -> Path:
    """Return where the spec of an engine file lies."""
    return engine.with_name(engine.name + ".json")


def read_engine_spec(engine: Path) -> EngineSpec:
    """Read the spec beside an engine and check that it belongs to it.

    Raises:
        UsageError: no engine, no spec, or a spec of another engine.
    """
    found = existing_path(engine)
    if found is None or not found.is_file():
        inside = sorted(found.glob("*.engine")) if found is not None else []
        hint = f"it is a folder: pass `{inside[0]}`" if inside else "make one with `build`"
        raise UsageError(f"there is no engine file `{engine}`", hint=hint)
    sidecar = spec_path(engine)
    damaged = "take it again from where the engine came from, or build the engine again"
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
        if (wrong := invalid_field(EngineSpec, data)) is not None:
            raise UsageError(f"`{sidecar}` is not an engine spec: {wrong}", hint=damaged)
        spec = from_json(EngineSpec, data)
    except FileNotFoundError:
        raise UsageError(
            f"`{engine}` has no spec `{sidecar.name}` beside it",
            hint="move both files together, or build again: an engine alone does not say how to feed it",
        ) from None
    except RecursionError as err:
        raise UsageError(f"`{sidecar}` is not an engine spec: it is nested too deeply", hint=damaged) from err
    except (OSError, ValueError) as err:
        raise UsageError(f"`{sidecar}` is not an engine spec: {err}", hint=damaged) from err
    if sha256_of(engine) != spec.engine_sha256:
        raise UsageError(
            f"`{engine}` is not the engine that `{sidecar.name}` describes",
            hint="the file was changed or swapped: build it again",
        )
    return spec


def export_file(store: Store, sha256: str, path: Path) -> None:
    """Copy a stored file to a place of the user's, unless the same content is there already.

    Raises:
        ArtifactError: the place cannot be written.
    """
    try:
        if path.is_file() and sha256_of(path) == sha256:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        store.copy_out(sha256, path)
    except OSError as err:
        raise ArtifactError(
            f"cannot write `{path}`: {(err.strerror or str(err)).lower()}", hint="choose another folder with `--out`"
        ) from err
