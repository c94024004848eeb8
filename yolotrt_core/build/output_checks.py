"""Checks what a stage hands on, right after it ran, so that the one at fault is blamed and nothing of it is kept."""

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
    from yolotrt_core.build.step import Step
    from yolotrt_core.plugin.registry import Registry

# What later stages and other tools read from the file itself.
_METADATA = frozenset({"stride", "names", "task", "imgsz"})


def fault(step: Step, what: str) -> StageError:
    """Return the error for a stage that did not do what its kind promises."""
    who = f"{step.kind} `{step.identity.name}` of `{step.identity.dist}`"
    return StageError(
        f"{who} {what}", hint=f"this is a fault of the plugin: report it to the authors of `{step.identity.dist}`"
    )


def check_export(step: Step, spec: Any, out: Path, registry: Registry) -> ModelSpec:
    """Check an exporter's files and answer.

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


def check_pass(step: Step, answer: Any, out: Path, registry: Registry) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Check a pass's file and answer; see `check_export`."""
    _refuse_missing(step, out, ONNX_FILE)
    wanted = "a tuple of `ModelSpec` and facts"
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
        raise fault(step, f"should return {wanted}, it returned {shown(answer)}")
    model = _model_spec(step, answer[0], wanted)
    _check_onnx(step, model, out / ONNX_FILE, registry)
    return model, answer[1]


def check_ranges(step: Step, method: Any, out: Path) -> Ranges:
    """Check a calibrator's file and answer; see `check_export`."""
    _refuse_missing(step, out, RANGES_FILE)
    if not isinstance(method, str):
        raise fault(step, f"should return its method as a str, it returned {shown(method)}")
    try:
        return read_ranges(out / RANGES_FILE)
    except UsageError as err:
        raise fault(step, f"wrote no usable `{RANGES_FILE}`: {err}") from err


def check_engine(step: Step, spec: Any, engine: Path) -> EngineSpec:
    """Check a builder's file and answer; see `check_export`."""
    _refuse_missing(step, engine.parent, engine.name)
    if not isinstance(spec, EngineSpec):
        raise fault(step, f"should return an `EngineSpec`, it returned {shown(spec)}")
    return spec


def _refuse_missing(step: Step, out: Path, *names: str) -> None:
    for name in names:
        if not (out / name).is_file():
            raise fault(step, f"wrote no `{name}`")


def _model_spec(step: Step, spec: Any, wanted: str) -> ModelSpec:
    if not isinstance(spec, ModelSpec):
        raise fault(step, f"should return {wanted}, it returned {shown(spec)}")
    for words, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        if not tensors or not all(isinstance(tensor, TensorSpec) for tensor in tensors):
            raise fault(step, f"returned a spec with {words}s {shown(tensors)}, expected `TensorSpec`s")
    return spec


def _check_reference(step: Step, spec: ModelSpec, path: Path) -> None:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as err:
        raise fault(step, f"wrote a `{REFERENCE_FILE}` that is no NumPy archive: {err}") from err
    for name in ("images", *(tensor.name for tensor in spec.outputs)):
        if name not in names:
            raise fault(step, f"wrote a `{REFERENCE_FILE}` without `{name}`; it has {_listed(sorted(names))}")


def _check_onnx(step: Step, spec: ModelSpec, path: Path, registry: Registry) -> None:
    """Compare the spec with what the file declares; whoever wrote both is to blame if they differ."""
    try:
        found = registry.reference_runtime().stage.contents(path)
    except StageError as err:
        raise fault(step, f"wrote a `{ONNX_FILE}` that is none: {err}") from err
    if found is None:
        return
    if [tensor.name for tensor in found.inputs] != ["images"]:
        names = _listed([tensor.name for tensor in found.inputs])
        raise fault(step, f"wrote an ONNX with the inputs {names}, expected one, named `images`")
    for words, tensors, said in (("input", found.inputs, spec.inputs), ("output", found.outputs, spec.outputs)):
        _compare(step, words, tensors, said)
    _check_labels(step, spec, found, registry)


def _compare(step: Step, words: str, found: Sequence[TensorSpec], said: Sequence[TensorSpec]) -> None:
    names = [[tensor.name for tensor in tensors] for tensors in (found, said)]
    if names[0] != names[1]:
        raise fault(step, f"wrote an ONNX with the {words}s {_listed(names[0])}, its spec says {_listed(names[1])}")
    for tensor, wanted in zip(found, said, strict=True):
        if not _fits(tensor, wanted, exact=words == "input"):
            raise fault(
                step, f"wrote an ONNX whose {words} `{tensor.name}` is {_typed(tensor)}, its spec says {_typed(wanted)}"
            )


def _fits(found: TensorSpec, said: TensorSpec, *, exact: bool) -> bool:
    """Say whether shapes agree; of an output the file may leave open what the spec knows, and the other way round."""
    if found.dtype != said.dtype:
        return False
    if not found.shape and not exact:  # the file leaves the whole shape open
        return True
    if len(found.shape) != len(said.shape):
        return False
    pairs = list(zip(found.shape, said.shape, strict=True))
    if exact and any(isinstance(one, int) != isinstance(other, int) for one, other in pairs):
        return False
    return all(one == other for one, other in pairs if isinstance(one, int) and isinstance(other, int))


def _check_labels(step: Step, spec: ModelSpec, found: OnnxContents, registry: Registry) -> None:
    postprocessor = registry.find_postprocessor(spec.head)
    before = postprocessor.stage.columns_before_classes if postprocessor else None
    shape = spec.outputs[0].shape
    if before is not None and shape and isinstance(shape[-1], int) and shape[-1] != before + len(spec.labels):
        raise fault(
            step,
            f"returned {len(spec.labels)} labels for an output {shape_text(shape)}: the head `{spec.head}` has "
            f"{before} + classes columns, so {shape[-1] - before} labels are expected",
        )
    missing = sorted(_METADATA - found.metadata.keys())
    if missing:
        raise fault(
            step,
            f"wrote an ONNX without {_listed(missing)} in its metadata: an exporter writes what "
            "`yolotrt_core.export.onnx_metadata.metadata_of` returns, a pass keeps it",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _typed(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {shape_text(tensor.shape)}"
