"""Checks of a stage's output right after it ran, so that errors name the plugin and nothing invalid is stored."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.calibration.ranges import Ranges, read_ranges
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.inference.input_shapes import shape_text
from yolotrt_core.plugin.registered import shown
from yolotrt_core.plugin.stages import ONNX_FILE, RANGES_FILE, REFERENCE_FILE, OnnxContents
from yolotrt_core.types import EngineSpec, Json, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from yolotrt_core.pipeline.step import Step
    from yolotrt_core.plugin.registry import Registry

# Metadata that later stages and other tools read from the ONNX.
_METADATA = frozenset({"stride", "names", "task", "imgsz"})


def plugin_error(step: Step, what: str) -> StageError:
    """Return the error for a stage that breaks the contract of its kind."""
    who = f"{step.kind} `{step.identity.name}` of `{step.identity.dist}`"
    return StageError(f"{who} {what}", hint=f"plugin bug: please report it to the authors of `{step.identity.dist}`")


def check_export(step: Step, spec: Any, out: Path, registry: Registry) -> ModelSpec:
    """Check an exporter's files and return value.

    Args:
        registry: its reference runtime reads what the ONNX declares, its postprocessor knows the head's columns.

    Raises:
        StageError: names the exporter, what was expected and what was found.
    """
    _refuse_missing(step, out, ONNX_FILE, REFERENCE_FILE)
    model = _model_spec(step, spec, "a `ModelSpec`")
    _check_reference(step, model, out / REFERENCE_FILE)
    _check_onnx(step, model, out / ONNX_FILE, registry)
    return model


def check_pass(step: Step, returned: Any, out: Path, registry: Registry) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Check a pass's file and return value; see `check_export`."""
    _refuse_missing(step, out, ONNX_FILE)
    wanted = "a tuple of `ModelSpec` and facts"
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
        raise plugin_error(step, f"returned {shown(returned)}, expected {wanted}")
    model = _model_spec(step, returned[0], wanted)
    _check_onnx(step, model, out / ONNX_FILE, registry)
    return model, returned[1]


def check_ranges(step: Step, method: Any, out: Path) -> Ranges:
    """Check a calibrator's file and return value; see `check_export`."""
    _refuse_missing(step, out, RANGES_FILE)
    if not isinstance(method, str):
        raise plugin_error(step, f"returned {shown(method)}, expected the method as a str")
    try:
        return read_ranges(out / RANGES_FILE)
    except UsageError as err:
        raise plugin_error(step, f"wrote an invalid `{RANGES_FILE}`: {err}") from err


def check_engine(step: Step, spec: Any, engine: Path) -> EngineSpec:
    """Check a builder's file and return value; see `check_export`."""
    _refuse_missing(step, engine.parent, engine.name)
    if not isinstance(spec, EngineSpec):
        raise plugin_error(step, f"returned {shown(spec)}, expected an `EngineSpec`")
    return spec


def _refuse_missing(step: Step, out: Path, *names: str) -> None:
    for name in names:
        if not (out / name).is_file():
            raise plugin_error(step, f"did not write `{name}`")


def _model_spec(step: Step, spec: Any, wanted: str) -> ModelSpec:
    if not isinstance(spec, ModelSpec):
        raise plugin_error(step, f"returned {shown(spec)}, expected {wanted}")
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        if not tensors or not all(isinstance(tensor, TensorSpec) for tensor in tensors):
            raise plugin_error(step, f"returned a spec with {kind}s {shown(tensors)}, expected `TensorSpec`s")
    return spec


def _check_reference(step: Step, spec: ModelSpec, path: Path) -> None:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as err:
        raise plugin_error(step, f"wrote an invalid `{REFERENCE_FILE}`, expected a NumPy archive: {err}") from err
    for name in ("images", *(tensor.name for tensor in spec.outputs)):
        if name not in names:
            raise plugin_error(step, f"wrote a `{REFERENCE_FILE}` without `{name}`; found {_list_text(sorted(names))}")


def _check_onnx(step: Step, spec: ModelSpec, path: Path, registry: Registry) -> None:
    """Compare the spec with what the file declares; one stage has written both."""
    try:
        found = registry.reference_runtime().stage.contents(path)
    except StageError as err:
        raise plugin_error(step, f"wrote an invalid `{ONNX_FILE}`: {err}") from err
    if found is None:
        return
    if [tensor.name for tensor in found.inputs] != ["images"]:
        names = _list_text([tensor.name for tensor in found.inputs])
        raise plugin_error(step, f"wrote an ONNX with the inputs {names}, expected one, named `images`")
    for kind, tensors, declared in (("input", found.inputs, spec.inputs), ("output", found.outputs, spec.outputs)):
        _compare(step, kind, tensors, declared)
    _check_labels(step, spec, found, registry)


def _compare(step: Step, kind: str, found: Sequence[TensorSpec], declared: Sequence[TensorSpec]) -> None:
    names = [[tensor.name for tensor in tensors] for tensors in (found, declared)]
    if names[0] != names[1]:
        raise plugin_error(
            step, f"wrote an ONNX with the {kind}s {_list_text(names[0])}, expected {_list_text(names[1])}"
        )
    for tensor, wanted in zip(found, declared, strict=True):
        if not _is_compatible(tensor, wanted, exact=kind == "input"):
            shapes = f"{_tensor_text(tensor)}, expected {_tensor_text(wanted)}"
            raise plugin_error(step, f"wrote an ONNX whose {kind} `{tensor.name}` is {shapes}")


def _is_compatible(found: TensorSpec, declared: TensorSpec, *, exact: bool) -> bool:
    """Return whether shapes are compatible; an output dimension may be fixed in the file or in the spec only."""
    if found.dtype != declared.dtype:
        return False
    if not found.shape and not exact:  # the file leaves the whole shape open
        return True
    if len(found.shape) != len(declared.shape):
        return False
    pairs = list(zip(found.shape, declared.shape, strict=True))
    if exact and any(isinstance(one, int) != isinstance(other, int) for one, other in pairs):
        return False
    return all(one == other for one, other in pairs if isinstance(one, int) and isinstance(other, int))


def _check_labels(step: Step, spec: ModelSpec, found: OnnxContents, registry: Registry) -> None:
    postprocessor = registry.find_postprocessor(spec.head)
    before = postprocessor.stage.columns_before_classes if postprocessor else None
    shape = spec.outputs[0].shape
    if before is not None and shape and isinstance(shape[-1], int) and shape[-1] != before + len(spec.labels):
        raise plugin_error(
            step,
            f"returned {len(spec.labels)} labels for an output {shape_text(shape)}: the head `{spec.head}` has "
            f"{before} + classes columns, so {shape[-1] - before} labels are expected",
        )
    missing = sorted(_METADATA - found.metadata.keys())
    if missing:
        raise plugin_error(
            step,
            f"wrote an ONNX without {_list_text(missing)} in its metadata: an exporter writes what "
            "`yolotrt_core.export.onnx_metadata.metadata_of` returns, a pass keeps it",
        )


def _list_text(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _tensor_text(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {shape_text(tensor.shape)}"
