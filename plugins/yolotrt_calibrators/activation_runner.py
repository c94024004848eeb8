"""Runs the network in onnxruntime and passes the activations to collectors.

The network is cut after the last requested tensor, so box decoding does not run. Each image runs alone: its
activations fit the CPU cache, and memory does not grow with the batch. Images run in parallel, one thread each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import StageError

Collect = Callable[[str, NDArray[np.float32]], None]
Scope = Literal["convolutions", "all"]
WEIGHTED = frozenset({"Conv", "ConvTranspose"})
# Each worker holds one image's activations, about 60 MB for YOLOv5n at 640x640.
_MAX_WORKERS = 8


def find_targets(model: ModelProto, scope: Scope) -> list[str]:
    """List the tensors that need a range, in the graph's order.

    Args:
        scope: `convolutions`: inputs of convolutions, all that Q/DQ insertion needs;
            `all`: every float tensor up to the outputs of the last convolutions, needed where TensorRT (10 and
            older) chooses precisions. Quantized tensors are skipped.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    weights = {w.name for w in model.graph.initializer}
    read = [n.input[0] for n in model.graph.node if n.op_type in WEIGHTED]
    read = [t for t in dict.fromkeys(read) if t not in weights and not _is_quantized(producers.get(t))]
    if scope == "convolutions" or not read:
        return read
    heads = [n.output[0] for n in model.graph.node if n.op_type in WEIGHTED]
    nodes = _find_ancestors(model, heads)
    types = _float_tensors(model)
    inputs = [v.name for v in model.graph.input if v.name not in weights]
    return [t for t in [*inputs, *(o for n in nodes for o in n.output)] if t in types]


def run_images(model: ModelProto, tensors: list[str], batches: Iterator[NDArray[np.float32]], collect: Collect) -> int:
    """Run all images; call `collect(tensor name, values)` for each requested tensor.

    Args:
        model: float32, static or dynamic. tensors: see `find_targets`.
        batches: float32, of any batch size. collect: called from several threads.

    Returns:
        The number of images.

    Raises:
        StageError: onnxruntime cannot run the network.
    """
    images = _split_batches(batches)
    first = next(images, None)
    if first is None:
        return 0
    network = _load_network(model, tensors, first)
    _collect_image(network, first, collect)
    images_run = 1
    lock = threading.Lock()

    def work() -> int:
        count = 0
        while True:
            with lock:
                image = next(images, None)
            if image is None:
                return count
            _collect_image(network, image, collect)
            count += 1

    workers = max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            with lock:
                images = iter(())  # after a failure or Ctrl-C the others stop at their next image
        images_run += sum(job.result() for job in running)
    return images_run


@dataclass(frozen=True, slots=True)
class _Network:
    """The cut network, loaded.

    Attributes:
        batch: images per run; more than 1 only where the graph requires it.
    """

    session: Any
    input: str
    outputs: list[str]
    batch: int


def _collect_image(network: _Network, image: NDArray[np.float32], collect: Collect) -> None:
    if network.input in network.outputs:
        collect(network.input, image)
    outputs = [name for name in network.outputs if name != network.input]
    for name, values in zip(outputs, _infer(network, image), strict=True):
        # The batch repeats one image, so its first item is enough.
        collect(name, np.ascontiguousarray(values[:1]) if network.batch > 1 else values)


def _infer(network: _Network, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    fed = np.repeat(image, network.batch, axis=0) if network.batch > 1 else image
    outputs = [name for name in network.outputs if name != network.input]
    try:
        return list(network.session.run(outputs, {network.input: fed})) if outputs else []
    except Exception as err:  # onnxruntime's exception classes have no common base
        raise StageError(f"onnxruntime cannot run the network for calibration: {first_line(err)}") from err


def _load_network(model: ModelProto, tensors: list[str], image: NDArray[np.float32]) -> _Network:
    """Cut and load the network for one image per run, whatever its exported batch."""
    weights = {w.name for w in model.graph.initializer}
    inputs = [v.name for v in model.graph.input if v.name not in weights]
    if len(inputs) != 1:
        raise StageError(f"calibration expects a network with one input, found {', '.join(inputs) or 'none'}")
    cut = _cut(model, tensors)
    dim = next(v for v in cut.graph.input if v.name == inputs[0]).type.tensor_type.shape.dim[0]
    batch = dim.dim_value if dim.HasField("dim_value") else 1
    as_exported = _Network(_create_session(cut), inputs[0], tensors, batch)
    if batch == 1:
        return as_exported
    dim.dim_value = 1
    try:
        alone = _Network(_create_session(cut), inputs[0], tensors, 1)
        same = all(
            a.shape[1:] == b.shape[1:] and np.allclose(a[:1], b, rtol=1e-3, atol=1e-4)
            for a, b in zip(_infer(as_exported, image), _infer(alone, image), strict=True)
        )
    except StageError:
        same = False  # the batch is a constant inside the graph
    return alone if same else as_exported


def _create_session(model: ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal: an exception says the same
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's exception classes have no common base
        raise StageError(f"onnxruntime cannot load the network for calibration: {first_line(err)}") from err


def _cut(model: ModelProto, tensors: list[str]) -> ModelProto:
    """Return the part of the graph that computes these tensors, with them as outputs."""
    nodes = _find_ancestors(model, tensors)
    used = {name for node in nodes for name in node.input}
    inputs = {v.name for v in model.graph.input}
    graph = helper.make_graph(
        nodes,
        "calibration",
        list(model.graph.input),
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in tensors if n not in inputs],
        [w for w in model.graph.initializer if w.name in used],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _find_ancestors(model: ModelProto, tensors: list[str]) -> list[NodeProto]:
    needed = set(tensors)
    nodes = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    return nodes[::-1]


def _float_tensors(model: ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}


def _is_quantized(producer: NodeProto | None) -> bool:
    return producer is not None and producer.op_type == "DequantizeLinear"


def _split_batches(batches: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for batch in batches:
        for index in range(len(batch)):
            yield batch[index : index + 1]


def load(path: Path) -> ModelProto:
    """Read the ONNX.

    Raises:
        StageError: the file is missing or corrupted.
    """
    try:
        return onnx.load(str(path))
    except Exception as err:  # protobuf and the file system have no common exception base
        raise StageError(f"`{path.name}` is not a valid ONNX model: {first_line(err)}") from err
