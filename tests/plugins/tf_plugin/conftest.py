"""One Keras network in every format, made once."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@pytest.fixture(autouse=True, scope="session")
def _tensorflow() -> Iterator[None]:
    """TensorFlow and Keras warn of their own old ways when imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorflow", reason="needs TensorFlow (extra `tf`)")
        pytest.importorskip("tf2onnx", reason="needs tf2onnx (extra `tf`)")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    yield


@pytest.fixture(scope="session")
def models(_tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network in each format, for one image at a time and (`batched`) for any number."""
    import keras_yolo

    folder = tmp_path_factory.mktemp("keras")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        one, any_batch = keras_yolo.make(batch=1), keras_yolo.make()
        one.export(str(folder / "saved_model"), verbose=False)
        any_batch.export(str(folder / "batched_saved_model"), verbose=False)
        one.save(folder / "toy.keras")
        any_batch.save(folder / "batched.keras")
        one.save(folder / "toy.h5")
        keras_yolo.freeze(one, folder / "toy.pb")
        keras_yolo.freeze(any_batch, folder / "batched.pb")
        for kind in ("fp32", "fp16", "int8", "uint8io"):
            (folder / f"{kind}.tflite").write_bytes(keras_yolo.lite(folder / "saved_model", kind))
    return folder


@pytest.fixture(scope="session")
def expected(_tensorflow: None) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return `answer(images_bchw)`: the same network in the project's layout, by TensorFlow alone."""
    import keras_yolo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras_yolo.make(units="pixels", order="anchor")

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: Any = model(images.transpose(0, 2, 3, 1), training=False).numpy()
        return np.asarray(found, np.float32)

    return answer
