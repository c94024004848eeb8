"""Python API: `build` and `Detector`, shared by the commands and other programs."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import refuse_unwritable, sidecar_path, user_path
from yolotrt_core.inference.detector import Detector as EngineDetector
from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.inference.input_shapes import shapes_text
from yolotrt_core.pipeline.build_options import AUTO, BuildSettings, resolve
from yolotrt_core.pipeline.executor import StepResult
from yolotrt_core.pipeline.step import ENGINE_SPEC_FILE
from yolotrt_core.plugin.options import GivenOptions
from yolotrt_core.plugin.registered import refuse_unavailable
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import from_json
from yolotrt_core.store.location import open_store
from yolotrt_core.store.store import Store
from yolotrt_core.types import EngineSpec, Precision

if TYPE_CHECKING:
    from yolotrt_core.evaluation.accuracy_gate import GateResult
    from yolotrt_core.tuning.auto_precision import AutoPrecisionResult
    from yolotrt_core.tuning.mixed_precision import MixedPrecisionResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine file, and how it was built.

    Attributes:
        path: the engine file, with its sidecar `<path>.json`. spec: content of the sidecar.
        key: its key in the store. steps: every stage with its record and whether it ran.
        gate: result of the accuracy gate; None if it does not apply (fp32, `gate.check` is off, or a
            reduced-precision source model without a reference).
        mixed: the layers kept in fp16 to meet `max_drop`, or None. auto: the selection of precision `auto`, or None.
    """

    path: Path
    spec: EngineSpec
    key: str
    steps: tuple[StepResult, ...]
    gate: GateResult | None = None
    mixed: MixedPrecisionResult | None = None
    auto: AutoPrecisionResult | None = None

    def __repr__(self) -> str:
        """Return a short form, without spec and steps."""
        spec = self.spec
        return (
            f"Engine(path={str(self.path)!r}, builder={spec.builder!r}, precision={spec.precision!r}, key={self.key!r})"
        )

    @property
    def from_cache(self) -> bool:
        """Whether no stage ran."""
        return all(step.from_cache for step in self.steps)


def build(
    weights: str | Path | None = None,
    *,
    precision: Precision | Literal["auto"] | None = None,
    out: str | Path | None = None,
    store: str | Path | Store | None = None,
    force: bool = False,
    registry: Registry | None = None,
    **settings: Any,
) -> Engine:
    """Build an engine and write it, with its sidecar, to a folder.

    Args:
        weights: checkpoint file, SavedModel folder, known name (`yolov5n`), or None for the
            embedded default model.
        precision: fp32, fp16, bf16, int8, fp8 or auto; None: fp16, or that of the source model.
        out: folder for the engine; default `./engines/NAME-PRECISION/`.
        store: artifact store or its folder; default see `default_store`.
        force: ignore the cache and rebuild all stages.
        registry: plugins to use; default all that are installed.
        settings: further fields of `BuildSettings`.

    Returns:
        The engine; cached stages are reused.

    Raises:
        YolotrtError: see `yolotrt_core.errors`.
    """
    build_settings = BuildSettings(weights=weights, precision=precision, **settings)
    folder = None if out is None else user_path(out)
    return build_engine(
        build_settings, store=open_store(store), registry=registry or Registry.discover(), out=folder, force=force
    )


def build_engine(
    settings: BuildSettings, *, store: Store, registry: Registry, out: Path | None = None, force: bool = False
) -> Engine:
    """Build an engine from given settings, store and registry, see `build`."""
    # Imported late: opening an engine needs none of them.
    from yolotrt_core.evaluation import accuracy_gate
    from yolotrt_core.tuning import validated_build

    refuse_unwritable(out if out is not None else Path("engines"))
    mixed = auto = None
    if settings.precision == AUTO:
        from yolotrt_core.tuning import auto_precision

        made, auto = auto_precision.select(settings, store=store, registry=registry, force=force)
        mixed = auto.mixed
    else:
        validated_build.check_settings(settings)
        resolved = resolve(settings, registry)
        made = validated_build.build_and_validate(
            resolved, store=store, registry=registry, force=force, is_requested=True
        )
    builder, precision = made.planned.resolved.builder, made.planned.request.precision
    name = f"{made.planned.resolved.source.name}-{precision}"
    refused = f"{name}-{builder.name}-refused"
    if not made.passed:
        from yolotrt_core.tuning import mixed_precision

        store.set_ref(refused, made.record.key)
        if mixed_precision.is_search_needed(made):
            made, mixed = mixed_precision.search(made, store=store, registry=registry)
    last = made.record
    accuracy_gate.refuse_failed(made.gate, precision, last.key)
    folder = out if out is not None else Path("engines") / name
    path = folder / f"{name}{Path(builder.stage.engine_file).suffix}"
    spec = from_json(EngineSpec, json.loads(store.read(last.outputs[ENGINE_SPEC_FILE].sha256)))
    _warn_of_replaced_engine(path, spec)
    store.export_file(made.engine.sha256, path)
    store.export_file(last.outputs[ENGINE_SPEC_FILE].sha256, sidecar_path(path))
    store.set_ref(f"{name}-{builder.name}", last.key)
    for check in (r for r in made.results if r.step.kind == "parity"):  # no stage reads it, so gc would remove it
        store.set_ref(f"{name}-{builder.name}-{check.step.label}", check.record.key)
    if made.gate is not None:
        store.set_ref(f"{name}-{builder.name}-gate", made.gate.key)
    store.remove_ref(refused)
    return Engine(path, spec, last.key, made.results, made.gate, mixed, auto)


def _warn_of_replaced_engine(path: Path, spec: EngineSpec) -> None:
    """Warn of overwriting another engine."""
    if not path.is_file():
        return
    try:
        before = from_json(EngineSpec, json.loads(sidecar_path(path).read_text(encoding="utf-8")))
        if before == spec:
            return
        shapes = shapes_text(before)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        _log.warning("overwriting `%s`, which was not created by yolotrt", path)
        return
    if shapes != shapes_text(spec):
        _log.warning("overwriting an engine of %s with one of %s in `%s`", shapes, shapes_text(spec), path)
    elif before.engine_sha256 != spec.engine_sha256:  # every training writes a `best.pt`
        _log.warning("overwriting an engine of other weights, options or tools in `%s`", path)


class Detector(EngineDetector):
    """A detector that can be opened from a model as well as from an engine file; see `inference.Detector`."""

    @classmethod
    def open(
        cls,
        weights: str | Path | None = None,
        *,
        engine: str | Path | None = None,
        store: str | Path | Store | None = None,
        registry: Registry | None = None,
        settings: BuildSettings | None = None,
        **fields: Any,
    ) -> Detector:
        """Open an engine file, or build one for a model first; the build is cached.

        Args:
            weights: as for `build`. engine: an engine file with its sidecar, instead of `weights`.
            store: artifact store or its folder. registry: plugins; default all installed.
            settings: what to build, `weights` included.
            fields: further fields of `BuildSettings`, e.g. `precision="fp32"`, `imgsz=(480, 640)`.
                `builder` defaults to the first that runs on this machine.

        Raises:
            UsageError: `weights` and `engine` are both given, or the engine file is invalid.
            StageError: the engine does not run on this machine.
        """
        registry = registry or Registry.discover()
        opened = open_store(store)
        wanted = settings or BuildSettings(weights=weights, **fields)
        given = GivenOptions(wanted.flags, wanted.recipe)
        if engine is not None:
            if wanted.weights is not None:
                raise UsageError("`weights` and `engine` are mutually exclusive", hint="an engine contains its model")
            path = user_path(engine)
            spec = read_engine_spec(path)
            builder = registry.usable("builder", spec.builder)
        else:
            if wanted.precision != AUTO:  # `auto` tries every builder that runs on this machine
                builder = (
                    registry.usable("builder", wanted.builder)
                    if wanted.builder
                    else registry.default_builder(to_run=True)
                )
                refuse_unavailable(builder, builder.stage.runnable())
                wanted = dataclasses.replace(wanted, builder=builder.name)
            with tempfile.TemporaryDirectory(prefix="yolotrt-") as folder:
                built = build_engine(wanted, store=opened, registry=registry, out=Path(folder))
                builder = registry.usable("builder", built.spec.builder)
                return cls.load(built.path, built.spec, builder, given, store=opened, registry=registry)
        refuse_unavailable(builder, builder.stage.runnable())
        return cls.load(path, spec, builder, given, store=opened, registry=registry)
