"""Engine files and their sidecars."""

from __future__ import annotations

import json
from pathlib import Path

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.files.paths import existing_path, sidecar_path
from yolotrt_core.serialization import from_json, invalid_field
from yolotrt_core.types import EngineSpec


def read_engine_spec(engine: Path) -> EngineSpec:
    """Read the sidecar of an engine and verify the engine's digest.

    Raises:
        UsageError: missing engine or sidecar, or a sidecar of another engine.
    """
    found = existing_path(engine)
    if found is None or not found.is_file():
        inside = sorted(found.glob("*.engine")) if found is not None else []
        hint = f"it is a folder: pass `{inside[0]}`" if inside else "build one with `build`"
        raise UsageError(f"no such engine file: `{engine}`", hint=hint)
    sidecar = sidecar_path(engine)
    restore = "copy the sidecar again, or rebuild the engine"
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
        if (wrong := invalid_field(EngineSpec, data)) is not None:
            raise UsageError(f"`{sidecar}` is not an engine spec: {wrong}", hint=restore)
        spec = from_json(EngineSpec, data)
    except FileNotFoundError:
        raise UsageError(
            f"missing sidecar `{sidecar.name}` of `{engine}`",
            hint="keep the engine and its .json file together, or rebuild the engine",
        ) from None
    except RecursionError as err:
        raise UsageError(f"`{sidecar}` is not an engine spec: nested too deeply", hint=restore) from err
    except (OSError, ValueError) as err:
        raise UsageError(f"`{sidecar}` is not an engine spec: {err}", hint=restore) from err
    if sha256_of(engine) != spec.engine_sha256:
        raise UsageError(
            f"the checksum of `{engine}` does not match its sidecar `{sidecar.name}`",
            hint="the file was changed or replaced: rebuild the engine",
        )
    return spec
