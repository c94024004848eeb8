"""Models that TensorFlow runs, but whose boxes are lost or selected already, are refused with what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource
from yolotrt_tf.options import TfOptions
from yolotrt_tf.stages import TfExporter

pytestmark = pytest.mark.tf


def refused(path: Path, out: Path, size: int = 64) -> UsageError:
    source = ModelSource(path, sha256_of(path), path.stem)
    with pytest.raises(UsageError) as caught:
        TfExporter().export(source, BuildRequest("fp32", 1, size, size), TfOptions(), out)
    return caught.value


def _selecting() -> Any:
    """Boxes of upstream's `--nms`: (1, 100, 4), scores, classes and their number."""
    import tensorflow as tf

    class Selecting(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
        @tf.function(input_signature=[tf.TensorSpec([1, 64, 64, 3], tf.float32, "images")])  # type: ignore[untyped-decorator]
        def serve(self, images: Any) -> Any:
            rows = tf.reshape(images, [1, -1, 8])
            found = tf.image.combined_non_max_suppression(rows[:, :, None, :4], rows[:, :, 5:], 100, 100)
            return {"boxes": found[0], "scores": found[1], "classes": found[2], "count": found[3]}

    return Selecting()


def test_nms_made_of_loops_says_so(tmp_path: Path) -> None:
    """`tf.image.non_max_suppression_padded`, which has no operator of its own."""
    import tensorflow as tf

    class Selecting(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
        @tf.function(input_signature=[tf.TensorSpec([1, 64, 64, 3], tf.float32, "images")])  # type: ignore[untyped-decorator]
        def serve(self, images: Any) -> Any:
            rows = tf.reshape(images, [1, -1, 8])
            kept, count = tf.image.non_max_suppression_padded(
                rows[..., :4], rows[..., 5], 100, pad_to_max_output_size=True, canonicalized_coordinates=True
            )
            return {"boxes": tf.gather(rows, kept, batch_dims=1), "count": count}

    model = Selecting()
    tf.saved_model.save(model, str(tmp_path / "saved_model"), signatures={"serving_default": model.serve})
    told = refused(tmp_path / "saved_model", tmp_path)
    assert "ends with non-maximum suppression (`non_max_suppression_padded" in told.message


def test_models_with_nms_say_so(tmp_path: Path) -> None:
    import tensorflow as tf

    model = _selecting()
    tf.saved_model.save(model, str(tmp_path / "saved_model"), signatures={"serving_default": model.serve})
    frozen = model.serve.get_concrete_function().graph.as_graph_def()
    (tmp_path / "frozen.pb").write_bytes(frozen.SerializeToString())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved_model"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    (tmp_path / "lite.tflite").write_bytes(converter.convert())
    for name in ("saved_model", "frozen.pb", "lite.tflite"):
        told = refused(tmp_path / name, tmp_path)
        assert "ends with non-maximum suppression" in told.message and "CombinedNonMaxSuppression" in told.message
        assert "without `--nms`" in str(told.hint)


def test_integers_that_hold_nothing(models: Path, tmp_path: Path) -> None:
    """One product's scale is enlarged in the file, as TensorFlow 2.21 does it."""
    from tf2onnx.tflite.Model import Model

    data = bytearray((models / "int8.tflite").read_bytes())
    graph = Model.GetRootAs(bytes(data), 0).Subgraphs(0)
    model = Model.GetRootAs(bytes(data), 0)
    product = next(
        o for o in map(graph.Operators, range(graph.OperatorsLength()))
        if model.OperatorCodes(o.OpcodeIndex()).BuiltinCode() == 18
    )  # fmt: skip
    tensor = graph.Tensors(product.Outputs(0))
    table = tensor.Quantization()._tab
    place = table.Vector(table.Offset(8))  # field `scale` of QuantizationParameters
    scale = struct.unpack_from("<f", data, place)[0]
    assert scale == tensor.Quantization().Scale(0)
    struct.pack_into("<f", data, place, scale * 1000)
    (tmp_path / "broken.tflite").write_bytes(data)
    told = refused(tmp_path / "broken.tflite", tmp_path)
    assert "broken at their source" in told.message and tensor.Name().decode() in told.message
    assert "TensorFlow 2.13" in str(told.hint)


def test_files_of_current_tensorflow(data: Path, tmp_path: Path) -> None:
    models = data.parent / "field" / "models"
    if not models.is_dir():
        pytest.skip(f"needs `{models}`")
    assert "broken at their source" in refused(models / "g12_tf221_int8.tflite", tmp_path, 640).message
