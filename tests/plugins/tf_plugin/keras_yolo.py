"""A YOLOv5-like Keras network with every part that is hard to convert, and each form TensorFlow saves it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE = 64
CLASSES = 3
ANCHORS = {8: [(10, 13), (16, 30)], 16: [(30, 61), (62, 45)]}
WIDTH = 5 + CLASSES
ROWS = sum(len(a) * (SIZE // s) ** 2 for s, a in ANCHORS.items())


def make(batch: int | None = None, units: str = "normalised", order: str = "cell", size: int | None = SIZE) -> Any:
    """Return a functional model, NHWC, with SiLU, MaxPool, UpSampling2D, Concatenate and YOLOv5's decode.

    Two levels (strides 8 and 16), two anchors, three classes; output (batch, 160, 8). Only standard
    layers, so that every format can hold it.
    """
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers

    def conv(x: Any, filters: int, kernel: int = 3, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3)(x)
        return layers.Activation("silu")(x)

    images = keras.Input((size, size, 3), batch_size=batch, name="images")
    x = conv(conv(images, 8, strides=2), 16, strides=2)
    fine = conv(x, 16, strides=2)
    coarse = layers.MaxPooling2D(5, 1, padding="same")(conv(fine, 32, strides=2))
    up = layers.UpSampling2D(2, interpolation="nearest")(conv(coarse, 16, 1))
    fine = conv(layers.Concatenate()([up, fine]), 16)
    spread = keras.initializers.RandomNormal(stddev=4.0)  # answers that differ from cell to cell
    levels = []
    for (stride, anchors), x in zip(ANCHORS.items(), (fine, coarse), strict=True):
        levels.append(
            _decode(layers.Conv2D(len(anchors) * WIDTH, 1, kernel_initializer=spread)(x), stride, anchors, units, order)
        )
    return keras.Model(images, layers.Concatenate(axis=1)(levels))


def _decode(x: Any, stride: int, anchors: list[tuple[int, int]], units: str, order: str) -> Any:
    import keras

    layers, cells, count = keras.layers, SIZE // stride, len(anchors)
    y = layers.Activation("sigmoid")(layers.Reshape((cells * cells, count, WIDTH))(x))
    gy, gx = np.mgrid[:cells, :cells].reshape(2, -1).astype(np.float32)
    grid = np.stack([gx, gy], -1)[:, None, :].repeat(count, 1) - 0.5
    scale = 1 / SIZE if units == "normalised" else 1.0

    def columns(first: int, end: int) -> Any:  # a slice that `.h5` can hold
        return layers.Cropping2D(((0, 0), (first, WIDTH - end)), data_format="channels_first")(y)

    xy = layers.Rescaling(2 * stride * scale, (grid * stride * scale).tolist())(columns(0, 2))
    wh = layers.Multiply()([columns(2, 4), columns(2, 4)])
    wh = layers.Rescaling((np.array(anchors, np.float32)[None] * 4 * scale).tolist())(wh)
    rows = layers.Concatenate(axis=-1)([xy, wh, columns(4, WIDTH)])
    if order == "anchor":
        rows = layers.Permute((2, 1, 3))(rows)
    return layers.Reshape((count * cells * cells, WIDTH))(rows)


def sample_image(batch: int = 1, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Return random smooth NHWC images, float32 in 0..1."""
    random = np.random.default_rng(seed)
    coarse = random.random((batch, size // 8, size // 8, 3), dtype=np.float32)
    return np.clip(coarse.repeat(8, 1).repeat(8, 2) + random.normal(0, 0.05, (batch, size, size, 3)), 0, 1).astype("f4")


def freeze(model: Any, path: Path) -> None:
    """Write the model as a frozen GraphDef, as TensorFlow 1 tools did."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(lambda images: model(images, training=False))
    shape = [model.inputs[0].shape[0], SIZE, SIZE, 3]
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(tf.TensorSpec(shape, tf.float32)))
    path.write_bytes(frozen.graph.as_graph_def().SerializeToString())


def lite(saved_model: Path, kind: str = "fp32") -> bytes:
    """Return a TFLite file: fp32, fp16 (weights), int8 (all of it, float in and out) or uint8io (uint8 in and out)."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    if kind != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in ("int8", "uint8io"):
        converter.representative_dataset = lambda: ([sample_image(seed=s)] for s in range(20))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if kind == "uint8io":
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    return bytes(converter.convert())
