"""Conversion of a loaded TensorFlow model to ONNX by tf2onnx."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf
from onnx import ModelProto
from tf2onnx import convert, utils

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import StageError
from yolotrt_core.types import Layout
from yolotrt_tf.loaders import Network

log = logging.getLogger(__name__)


def onnx_from_network(
    network: Network, path: Path, shape: tuple[int | None, int, int], opset: int, layout: Layout
) -> ModelProto:
    """Convert with images as (B, 3, H, W), without an input transposition, or in TensorFlow's layout.

    Args:
        path: the model's file, for TensorFlow Lite.
        shape: (batch, height, width); None is a free batch. TensorFlow Lite keeps its batch.
        layout: of the images.

    Returns:
        Input `images`, output `output0`, with the model's types.

    Raises:
        StageError: tf2onnx failed, or left an operator without ONNX equivalent.
    """
    # Reset tf2onnx's name counter; otherwise the bytes depend on earlier conversions.
    utils.INTERNAL_NAME = 1
    planar = [network.input_name] if layout == "nchw" else []
    try:
        if network.graph is None:
            model = _from_tflite(network, path, opset, planar)
        else:
            graph = _with_shape(network, shape)
            model, _ = convert.from_graph_def(
                graph,
                name=path.stem,
                input_names=[network.input_name],
                output_names=[network.output_name],
                inputs_as_nchw=planar,
                opset=opset,
            )
    except Exception as err:  # tf2onnx has no exception base
        raise StageError(
            f"tf2onnx cannot convert the model at opset {opset}: {type(err).__name__}: {first_line(err)}",
            hint="try another `--tf-opset`, or another format of the model",
        ) from err
    _refuse_foreign(model)
    return model


def _with_shape(network: Network, shape: tuple[int | None, int, int]) -> Any:
    graph = type(network.graph)()
    graph.CopyFrom(network.graph)
    entry = network.input_name.partition(":")[0]
    for node in graph.node:
        node.attr.pop("_output_shapes", None)  # TensorFlow's record of the saved shape
        if node.name == entry:
            fixed = tf.TensorShape([shape[0], shape[1], shape[2], 3])
            node.attr["shape"].shape.CopyFrom(fixed.as_proto())
    return graph


def _from_tflite(network: Network, path: Path, opset: int, planar: list[str]) -> ModelProto:
    with _native_errors_logged():
        model, _ = convert.from_tflite(
            str(path),
            input_names=[network.input_name],
            output_names=[network.output_name],
            inputs_as_nchw=planar,
            opset=opset,
        )
    return model


@contextlib.contextmanager
def _native_errors_logged() -> Iterator[None]:
    """Redirect native output of TensorFlow Lite, run by tf2onnx, to our log."""
    with tempfile.TemporaryFile() as file:
        try:
            kept = os.dup(2)
        except OSError:  # a process without standard error
            yield
            return
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read(1 << 14).decode(errors="replace").splitlines():
                log.debug("TensorFlow Lite: %s", line)


def _refuse_foreign(model: ModelProto) -> None:
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    foreign = sorted({n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, version, n.domain)})
    if foreign:
        raise StageError(
            f"tf2onnx cannot convert the operators {', '.join(f'`{name}`' for name in foreign)}",
            hint="save the network without pre- and postprocessing (no decoding of files, no NMS)",
        )
