"""The pass `simplify`: onnxsim or onnxslim, with their results checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from yolotrt_core.console.output import native_output_to
from yolotrt_core.console.text import first_line
from yolotrt_core.errors import StageError
from yolotrt_core.types import Json, ModelSpec, OnnxModel, TensorSpec
from yolotrt_onnx.graph import check, input_specs, lift_constants, load, save, spec_of, tensor_specs

_HINT = "try the other tool with `--simplify-tool`, or disable it: `--simplify-tool off`"


def apply(model: OnnxModel, choice: str, out: Path) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the simplified graph of `model` to `out/model.onnx`.

    Metadata and the names of dynamic dimensions are preserved. `Constant` nodes become initializers: onnxsim
    leaves them, onnxslim does not, TensorRT and onnxruntime support both.

    Args:
        choice: `onnxsim`, `onnxslim`, or `both`, which runs them in that order.

    Raises:
        StageError: a tool is missing or fails, or its result is invalid or has other inputs or
            outputs than the model; names the tool.
    """
    tools = list(_TOOLS) if choice == "both" else [choice]
    graph = load(model.path)
    facts: dict[str, Json] = {"tools": [*tools], "nodes_before": len(graph.graph.node)}
    # Before the tools too: onnxslim 0.1.98 reads a Constant's `value_floats` as double.
    lift_constants(graph)
    for tool in tools:
        graph = _run(tool, graph)
    lift_constants(graph)
    check(graph, " and ".join(f"`{tool}`" for tool in tools), _HINT)
    facts["nodes"] = len(graph.graph.node)
    save(graph, out)
    return spec_of(graph, model.spec), facts


def _run(tool: str, model: ModelProto) -> ModelProto:
    original = ModelProto()
    original.CopyFrom(model)
    try:
        # onnxsim prints on standard error what it cannot compute, such as free sizes; failures are raised.
        with Path(os.devnull).open("w") as nowhere, native_output_to(nowhere.fileno(), 2):
            simplified = _TOOLS[tool](model)
    except StageError:
        raise
    except ImportError as err:
        hint = f"`pip install {tool}`, or {_HINT}"
        raise StageError(f"`{tool}` cannot be imported: {first_line(err)}", hint=hint) from err
    except Exception as err:  # the tools have no common exception base
        raise StageError(f"`{tool}` failed on this graph: {first_line(err)}", hint=_HINT) from err
    if not isinstance(simplified, ModelProto):
        raise StageError(f"`{tool}` returned no model", hint=_HINT)
    _refuse_changed(tool, "input", input_specs(original.graph), input_specs(simplified.graph))
    _refuse_changed(tool, "output", tensor_specs(original.graph.output), tensor_specs(simplified.graph.output))
    for field in ("input", "output"):
        del getattr(simplified.graph, field)[:]
        getattr(simplified.graph, field).extend(getattr(original.graph, field))
    del simplified.metadata_props[:]
    simplified.metadata_props.extend(original.metadata_props)
    return simplified


def _onnxsim(model: ModelProto) -> ModelProto:
    import onnxsim

    simplified, valid = onnxsim.simplify(model)
    if not valid:
        raise StageError("`onnxsim` reports that its result is wrong", hint=_HINT)
    return simplified


def _onnxslim(model: ModelProto) -> ModelProto:
    import onnxslim

    return onnxslim.slim(model)


_TOOLS: dict[str, Callable[[ModelProto], ModelProto]] = {"onnxsim": _onnxsim, "onnxslim": _onnxslim}


def _refuse_changed(tool: str, kind: str, before: Sequence[TensorSpec], after: Sequence[TensorSpec]) -> None:
    """Raise unless names, dtypes and sizes agree; names of dynamic dimensions may differ."""

    def shown(specs: Sequence[TensorSpec]) -> list[str]:
        return [f"{s.name}: {s.dtype} {tuple(d if isinstance(d, int) else '?' for d in s.shape)}" for s in specs]

    if shown(before) != shown(after):
        raise StageError(
            f"`{tool}` changed the {kind}s from `{', '.join(shown(before))}` to `{', '.join(shown(after))}`",
            hint=_HINT,
        )
