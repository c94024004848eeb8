"""Loaders of all TensorFlow formats, for inference and for conversion by tf2onnx."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from yolotrt_core.console.text import first_line, nearest, printable
from yolotrt_core.errors import UsageError
from yolotrt_tf.formats import NAMES, Format
from yolotrt_tf.integer_resolution import LOST, Resolution, coarsest, refuse_lost
from yolotrt_tf.keras_allowlist import refuse_classes
from yolotrt_tf.operator_allowlist import drop_saver, refuse_operators
from yolotrt_tf.suppression import refuse_lite_suppression, refuse_suppression

if TYPE_CHECKING:
    from yolotrt_tf.options import TfOptions


@dataclass(frozen=True, slots=True)
class Quantization:
    """Quantization of an integer tensor: value = (integer - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: np.dtype[Any]

    def quantize(self, values: NDArray[np.float32]) -> NDArray[Any]:
        limits = np.iinfo(self.dtype)
        rounded: NDArray[Any] = np.clip(np.round(values / self.scale) + self.zero_point, limits.min, limits.max)
        return rounded.astype(self.dtype)

    def dequantize(self, values: NDArray[Any]) -> NDArray[np.float32]:
        return ((values.astype(np.float32) - self.zero_point) * np.float32(self.scale)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Network:
    """A loaded model.

    Attributes:
        run: images float32 (B, H, W, 3), RGB 0..1, to boxes float32 (B, N, 5 + C); B is 1 for a
            model with a fixed batch of 1.
        shape: (batch, height, width) of the input; None where free.
        input_name, output_name: tensors for tf2onnx.
        graph: the frozen GraphDef, or None for TensorFlow Lite.
        input_quantization, output_quantization: of integer inputs and outputs of TensorFlow Lite.
        rounded: whether it computes with 8-bit integers.
        resolution: the coarsest of its results in 8-bit integers.
    """

    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    shape: tuple[int | None, int | None, int | None]
    input_name: str
    output_name: str
    graph: Any = None
    input_quantization: Quantization | None = None
    output_quantization: Quantization | None = None
    rounded: bool = False
    resolution: Resolution | None = None


def load(path: Path, form: Format, options: TfOptions) -> Network:
    """Load a model with TensorFlow.

    Raises:
        UsageError: it cannot be read, contains operators that are not allowed, or does not map one float
            image (batch, height, width, 3) to one float tensor.
    """
    readers: Mapping[Format, Callable[[Path, TfOptions], Network]] = {
        "savedmodel": _saved_model,
        "keras": _keras,
        "hdf5": _keras,
        "graphdef": _graph_def,
        "tflite": _tflite,
    }
    try:
        if form in ("keras", "hdf5"):
            refuse_classes(path, form)
        return readers[form](path, options)
    except UsageError:
        raise
    except Exception as err:  # TensorFlow, Keras, protobuf and HDF5 have no common exception base
        raise UsageError(
            f"`{path}` looks like a {NAMES[form]}, but TensorFlow cannot load it: {first_line(err)}",
            hint="the file may be corrupted: save or copy it again",
        ) from err


def _saved_model(path: Path, options: TfOptions) -> Network:
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    if not file.is_file():
        raise UsageError(f"`{path}` is a SavedModel in text format", hint="save it again as `saved_model.pb`")
    described = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    if len(described.meta_graphs) == 1 and described.meta_graphs[0].HasField("object_graph_def"):
        drop_saver(described.meta_graphs[0])
    for meta in described.meta_graphs:
        refuse_operators(meta.graph_def)
        if options.output is None:
            refuse_suppression(meta.graph_def)
    with tempfile.TemporaryDirectory() as folder:
        # Load only the checked files, not other content of the folder.
        (Path(folder) / file.name).write_bytes(described.SerializeToString())
        (Path(folder) / "variables").symlink_to((path / "variables").absolute())
        model = tf.saved_model.load(folder)
    if options.signature not in model.signatures:
        known = list(model.signatures)
        raise UsageError(
            f"the SavedModel has no signature `{options.signature}`", hint=nearest(options.signature, known)
        )
    function = model.signatures[options.signature]
    _, inputs = function.structured_input_signature
    outputs = function.structured_outputs
    source = _select("input", options.input, {name: (s.shape, s.dtype) for name, s in inputs.items()})
    target = _select("output", options.output, {name: (t.shape, t.dtype) for name, t in outputs.items()})
    if len(inputs) > 1:
        raise UsageError(f"the signature needs {len(inputs)} inputs: {_format_names(inputs)}; expected one, the image")

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return _to_boxes(model.signatures[options.signature](**{source: tf.constant(images)})[target].numpy())

    return _freeze(function, run, list(outputs).index(target))


def _keras(path: Path, options: TfOptions) -> Network:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"Keras uses the backend `{keras.backend.backend()}`, expected `tensorflow`", hint="unset KERAS_BACKEND"
        )
    # Safe mode additionally blocks Python code in the file.
    model = keras.models.load_model(str(path), compile=False, safe_mode=True)
    inputs = {t.name: (t.shape, t.dtype) for t in model.inputs}
    outputs = {t.name: (t.shape, t.dtype) for t in model.outputs}
    _select("input", options.input, inputs)
    target = list(outputs).index(_select("output", options.output, outputs))
    if len(inputs) > 1:
        raise UsageError(f"the model needs {len(inputs)} inputs: {_format_names(inputs)}; expected one, the image")

    def answer(images: Any) -> Any:
        found = model(images, training=False)
        return found if len(outputs) == 1 else tf.nest.flatten(found)[target]

    function = tf.function(answer).get_concrete_function(tf.TensorSpec(model.inputs[0].shape, tf.float32, "images"))
    return _freeze(function, lambda images: _to_boxes(np.asarray(answer(tf.constant(images)))), 0)


def _graph_def(path: Path, options: TfOptions) -> Network:
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef.FromString(path.read_bytes())
    refuse_operators(graph)
    if options.output is None:
        refuse_suppression(graph)
    if any(node.op in ("VariableV2", "VarHandleOp") for node in graph.node):
        raise UsageError(f"`{path}` contains variables", hint="freeze the graph, or pass its SavedModel")
    read = {name.lstrip("^").partition(":")[0] for node in graph.node for name in node.input}
    inputs = [f"{node.name}:0" for node in graph.node if node.op == "Placeholder"]
    silent = ("Const", "NoOp", "Assert", "Placeholder")
    outputs = [f"{node.name}:0" for node in graph.node if node.name not in read and node.op not in silent]
    everything = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    tensors = {name: everything.graph.as_graph_element(name) for name in (*inputs, *outputs)}

    def shapes(names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
        return {name.removesuffix(":0"): (tensors[name].shape, tensors[name].dtype) for name in names}

    source = tensors[_select("input", options.input, shapes(inputs)) + ":0"]
    target = tensors[_select("output", options.output, shapes(outputs)) + ":0"]
    function = everything.prune(source, target)
    return Network(
        lambda images: _to_boxes(function(tf.constant(images)).numpy()),
        _image_shape(source.name, source.shape),
        source.name,
        target.name,
        graph,
    )


def _refuse_invalid_tflite(path: Path) -> None:
    """Check a TensorFlow Lite file in Python: the interpreter trusts its offsets, so invalid ones crash the process.

    TensorFlow operators and third-party ones appear as custom operators.
    """
    from tf2onnx.tflite.Model import Model

    model = Model.GetRootAs(path.read_bytes(), 0)
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        refuse_lite_suppression(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), code.CustomCode())
        if code.CustomCode():
            raise UsageError(
                "expected only TensorFlow Lite's builtin operators, found "
                f"`{printable(code.CustomCode()[:80].decode(errors='replace'))}`; nothing was run",
                hint="convert the model with `tf.lite.OpsSet.TFLITE_BUILTINS` alone",
            )
    buffers = model.BuffersLength()
    for index in range(buffers):
        model.Buffers(index).DataAsNumpy()
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        tensors = graph.TensorsLength()
        for tensor in map(graph.Tensors, range(tensors)):
            tensor.Name(), tensor.ShapeAsNumpy(), tensor.Quantization()
            if tensor.Buffer() >= buffers:
                raise ValueError("a tensor's data is missing")
        used = [graph.InputsAsNumpy(), graph.OutputsAsNumpy()]
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            operator.BuiltinOptions()
            used += [operator.InputsAsNumpy(), operator.OutputsAsNumpy()]
        if any(np.max(tensors_of, initial=-1) >= tensors for tensors_of in used):
            raise ValueError("an operator reads a missing tensor")
    if not model.SubgraphsLength():
        raise ValueError("it contains no graph")


def _tflite(path: Path, options: TfOptions) -> Network:
    _refuse_invalid_tflite(path)
    resolution = coarsest(path)
    refuse_lost(resolution, LOST)
    # No default delegate: it writes directly to standard error.
    resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(str(path), experimental_op_resolver_type=resolver)
    inputs = {d["name"]: d for d in interpreter.get_input_details()}
    outputs = {d["name"]: d for d in interpreter.get_output_details()}
    source = inputs[_select("input", options.input, {n: _lite_tensor(d) for n, d in inputs.items()}, quantized=True)]
    target = outputs[
        _select("output", options.output, {n: _lite_tensor(d) for n, d in outputs.items()}, quantized=True)
    ]
    if len(inputs) > 1:
        raise UsageError(f"the model needs {len(inputs)} inputs: {_format_names(inputs)}; expected one, the image")
    into, out_of = _quantization(source), _quantization(target)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        if tuple(source["shape"]) != images.shape:
            interpreter.resize_tensor_input(source["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], images if into is None else into.quantize(images))
        interpreter.invoke()
        found = interpreter.get_tensor(target["index"])
        return _to_boxes(found if out_of is None else out_of.dequantize(found))

    shape = _image_shape(source["name"], tf.TensorShape([None if n < 0 else int(n) for n in source["shape_signature"]]))
    rounded = any(d["dtype"] in (np.int8, np.uint8) for d in interpreter.get_tensor_details())
    return Network(run, shape, source["name"], target["name"], None, into, out_of, rounded, resolution)


def _freeze(function: Any, run: Callable[[NDArray[np.float32]], NDArray[np.float32]], output: int) -> Network:
    frozen = convert_variables_to_constants_v2(function)
    entry, leave = frozen.inputs[0], frozen.outputs[output]
    graph = frozen.graph.as_graph_def()
    return Network(run, _image_shape(entry.name, entry.shape), entry.name, leave.name, graph)


def _select(kind: str, named: str | None, tensors: Mapping[str, tuple[Any, Any]], quantized: bool = False) -> str:
    """Return the tensor to use: the named one, or the only candidate for the image or boxes."""
    rank = 4 if kind == "input" else 3
    types = (tf.float32, tf.uint8, tf.int8) if quantized else (tf.float32,)
    if named is not None:
        if named not in tensors:
            raise UsageError(f"the model has no {kind} `{named}`", hint=nearest(named, list(tensors)))
        return named
    fitting = [
        name
        for name, (shape, dtype) in tensors.items()
        if tf.as_dtype(dtype) in types and tf.TensorShape(shape).rank in (rank, None)
    ]
    if len(fitting) != 1:
        expected = (
            "image (batch, height, width, 3)" if kind == "input" else "tensor of boxes (batch, rows, 5 + classes)"
        )
        shown = ", ".join(f"`{n}` {tf.TensorShape(s)} {tf.as_dtype(d).name}" for n, (s, d) in tensors.items()) or "none"
        hint = f"choose one with `--tf-{kind} NAME`" if len(fitting) > 1 else None
        raise UsageError(f"expected one {kind} that is a float {expected}, found {shown}", hint=hint)
    return fitting[0]


def _image_shape(name: str, shape: Any) -> tuple[int | None, int | None, int | None]:
    if shape.rank is None:
        return (None, None, None)
    sizes = shape.as_list()
    if len(sizes) != 4 or sizes[3] not in (3, None):
        raise UsageError(f"expected images (batch, height, width, 3) for input `{name}`, found {tuple(sizes)}")
    return (sizes[0], sizes[1], sizes[2])


def _to_boxes(found: NDArray[Any]) -> NDArray[np.float32]:
    return found.astype(np.float32, copy=False)


def _lite_tensor(detail: Mapping[str, Any]) -> tuple[Any, Any]:
    return tuple(detail["shape"].tolist()), detail["dtype"]


def _quantization(detail: Mapping[str, Any]) -> Quantization | None:
    if detail["dtype"] == np.float32:
        return None
    scale, zero_point = detail["quantization"]
    if not scale:
        raise UsageError(f"tensor `{detail['name']}` is {np.dtype(detail['dtype'])} and has no scale")
    return Quantization(float(scale), int(zero_point), np.dtype(detail["dtype"]))


def _format_names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
