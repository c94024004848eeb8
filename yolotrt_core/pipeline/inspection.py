"""Description of a model or engine file by the stage that reads it."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from yolotrt_core.errors import PluginError
from yolotrt_core.export.model_source import resolve_source
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.files.paths import existing_path, sidecar_path
from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.plugin.description import Description, describe_engine
from yolotrt_core.plugin.registered import refuse_unavailable, shown
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE
from yolotrt_core.store.errors import MissingArtifactError
from yolotrt_core.store.store import Store
from yolotrt_core.types import EngineSpec, ModelSource

NO_ONNX = "the ONNX that the engine was built from is not in the store: the layers are unknown"


def inspect_file(file: str, exporter: str | None, *, store: Store, registry: Registry) -> Description:
    """Describe a model (a file, a folder or a known name), or an engine with its sidecar.

    Args:
        exporter: name of the exporter to describe a model with; None: the one that recognises it.
        store: source of the ONNX that an engine was built from; not written to.

    Raises:
        UsageError: no such file, an engine without its sidecar, or a file that no exporter recognises.
        PluginError: the exporter's framework is not installed.
    """
    path = existing_path(file)
    if path is not None and path.is_file() and sidecar_path(path).is_file():
        return _describe_engine(path, store, registry)
    return _describe_model(resolve_source(file), exporter, registry)


def _describe_model(source: ModelSource, exporter: str | None, registry: Registry) -> Description:
    found = registry.get("exporter", exporter) if exporter else registry.select_exporter(source)
    refuse_unavailable(found, found.stage.available())
    described = found.stage.describe(source)
    if not isinstance(described, Description):
        raise PluginError(
            f"exporter `{found.name}` of `{found.dist}` returned {shown(described)}, expected a `Description`"
        )
    return described


def _describe_engine(engine: Path, store: Store, registry: Registry) -> Description:
    spec = read_engine_spec(engine)
    builder = registry.stages["builder"].get(spec.builder)
    described: Description = builder.stage.describe(engine, spec) if builder else describe_engine(spec)
    if described.layers:
        return described
    onnx = _describe_onnx(engine, spec, store, registry)
    if onnx is None:
        return dataclasses.replace(described, problem=described.problem or NO_ONNX)
    return dataclasses.replace(
        described,
        size=onnx.size,
        parameters=onnx.parameters,
        operations=onnx.operations,
        layers=onnx.layers,
    )


def _describe_onnx(engine: Path, spec: EngineSpec, store: Store, registry: Registry) -> Description | None:
    """Describe the ONNX that an engine was built from: the engine itself, or an artifact of the store."""
    if spec.onnx_sha256 == spec.engine_sha256:
        return _describe_model(ModelSource(engine, spec.onnx_sha256, engine.stem), None, registry)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, ONNX_FILE)
        try:
            store.copy_out(spec.onnx_sha256, copy)
        except MissingArtifactError:
            return None
        return _describe_model(ModelSource(copy, sha256_of(copy), engine.stem), None, registry)
