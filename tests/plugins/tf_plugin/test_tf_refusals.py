"""A TensorFlow model that would do more than compute is refused before any of it runs."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.types import BuildRequest, ModelSource
from yolotrt_tf.options import TfOptions
from yolotrt_tf.stages import TfExporter

pytestmark = [pytest.mark.tf, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]


def refused(path: Path, out: Path) -> UsageError:
    with pytest.raises(UsageError) as told:
        TfExporter().export(ModelSource(path, "0", "m"), BuildRequest("fp32", 1, 64, 64), TfOptions(), out)
    assert told.value.message.isprintable()
    assert len(told.value.message) < 700
    assert told.value.hint
    return told.value


def _write(tf: Any, victim: Path) -> None:
    tf.io.write_file(str(victim), "here")


def _print(tf: Any, victim: Path) -> None:
    tf.print("here", output_stream=f"file://{victim}")


def _read(tf: Any, victim: Path) -> None:
    tf.debugging.assert_none_equal(tf.io.read_file(__file__), "")


def _python(tf: Any, victim: Path) -> None:
    tf.numpy_function(lambda: victim.touch(), [], [])


def _table(tf: Any, victim: Path) -> None:
    table = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    tf.raw_ops.InitializeTableFromTextFileV2(
        table_handle=table, filename=__file__, key_index=-2, value_index=-1, vocab_size=-1, delimiter=" ", offset=0
    )


def _in_a_loop(tf: Any, victim: Path) -> None:
    body = tf.function(lambda n: (_write(tf, victim), n + 1)[1])
    tf.while_loop(lambda n: n < 1, lambda n: (body(n),), [tf.constant(0)])


EVIL: Mapping[str, tuple[Callable[[Any, Path], None], str]] = {
    "WriteFile": (_write, "WriteFile"),
    "PrintV2": (_print, "PrintV2|StringFormat"),
    "ReadFile": (_read, "ReadFile|NoneEqual"),
    "Python": (_python, "PyFunc|EagerPyFunc"),
    "table of a file": (_table, "HashTableV2|InitializeTableFromTextFileV2"),
    "in a loop": (_in_a_loop, "WriteFile"),
}


def _network(does: Callable[[Any, Path], None], victim: Path) -> Any:
    import tensorflow as tf

    class Network(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((1, 64, 64, 3), tf.float32)])
        def serve(self, images: Any) -> Any:
            does(tf, victim)
            return tf.zeros((1, 160, 8)) + tf.reduce_mean(images)

    return Network()


@pytest.mark.parametrize("form", ["saved_model", "graph"])
@pytest.mark.parametrize("kind", list(EVIL))
def test_an_operator_that_does_more_than_compute_is_not_run(kind: str, form: str, tmp_path: Path) -> None:
    import tensorflow as tf

    does, operator = EVIL[kind]
    victim, path = tmp_path / "victim", tmp_path / "model"
    network = _network(does, victim)
    if form == "saved_model":
        tf.saved_model.save(network, str(path), signatures=network.serve)
    else:
        path.write_bytes(network.serve.get_concrete_function().graph.as_graph_def().SerializeToString())
    assert not victim.exists()
    err = refused(path, tmp_path)
    assert re.search(rf"found `({operator})` \(node `.+` of .+\); nothing was run", err.message)
    assert not victim.exists()


def test_only_the_saver_may_hold_operators_on_files_and_it_is_not_loaded(models: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    from yolotrt_tf.operator_allowlist import drop_saver, refuse_operators

    shutil.copytree(models / "saved_model", tmp_path / "model")
    file = tmp_path / "model" / "saved_model.pb"
    described = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    meta = described.meta_graphs[0]
    with pytest.raises(UsageError, match=r"`(SaveV2|RestoreV2|StaticRegexFullMatch|StringJoin)`"):
        refuse_operators(meta.graph_def)
    before = len(meta.graph_def.library.function)
    drop_saver(meta)
    refuse_operators(meta.graph_def)
    assert len(meta.graph_def.library.function) == before - 2

    described = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    functions = described.meta_graphs[0].graph_def.library.function
    call = next(node for f in functions for node in f.node_def if node.op == "StatefulPartitionedCall")
    (call.attr["f"].func.name,) = (f.signature.name for f in functions if any(n.op == "SaveV2" for n in f.node_def))
    file.write_bytes(described.SerializeToString())
    assert "cannot load it" in refused(tmp_path / "model", tmp_path).message
    call.op = "SaveV2"
    file.write_bytes(described.SerializeToString())
    assert f"found `SaveV2` (node `{call.name}` of its function" in refused(tmp_path / "model", tmp_path).message


def test_operators_of_others_in_tensorflow_lite_are_not_run(tmp_path: Path) -> None:
    import tensorflow as tf

    victim = tmp_path / "victim"
    serve = _network(_print, victim).serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    assert re.search(
        "found `Flex(PrintV2|StringFormat)`; nothing was run", refused(tmp_path / "m.tflite", tmp_path).message
    )
    assert not victim.exists()


KERAS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "vocabulary": ({"class_name": "StringLookup", "module": "keras.layers"}, "keras.layers.StringLookup"),
    "other model": ({"class_name": "TFSMLayer", "module": "keras.layers"}, "keras.layers.TFSMLayer"),
    "pickle": ({"class_name": "TorchModuleWrapper", "module": "keras.layers"}, "TorchModuleWrapper"),
    "lambda": ({"class_name": "__lambda__", "config": {"value": "aaaa"}}, "__lambda__"),
    "function": ({"class_name": "function", "module": "builtins", "config": "get_file"}, "builtins.function"),
    "other package": ({"class_name": "Dense", "module": "os"}, "os.Dense"),
    "registered": ({"class_name": "Dense", "module": "keras.layers", "registered_name": "Own>Dense"}, "Dense"),
    "no text": ({"class_name": "Dense\x1b"}, "Dense?"),
}


@pytest.mark.parametrize("kind", list(KERAS))
@pytest.mark.parametrize("file", ["toy.keras", "toy.h5"])
def test_a_class_of_keras_that_does_more_than_compute_is_not_made(
    kind: str, file: str, models: Path, tmp_path: Path
) -> None:
    import h5py

    entry, shown = KERAS[kind]
    path = tmp_path / file
    hidden = {"config": {"name": [{"deep": {"config": {}, **entry}}]}}
    if file == "toy.h5":
        shutil.copyfile(models / file, path)
        with h5py.File(path, "r+") as weights:
            config = json.loads(weights.attrs["model_config"])
            config["config"]["layers"].append(hidden)
            weights.attrs["model_config"] = json.dumps(config)
    else:
        with zipfile.ZipFile(models / file) as whole, zipfile.ZipFile(path, "w") as changed:
            for name in whole.namelist():
                content = whole.read(name)
                if name == "config.json":
                    config = json.loads(content)
                    config["config"]["layers"].append(hidden)
                    content = json.dumps(config).encode()
                changed.writestr(name, content)
    message = refused(path, tmp_path).message
    assert shown in message
    assert "is not run" in message or "nothing was run" in message


@pytest.mark.parametrize("file", ["toy.keras", "toy.h5"])
def test_a_keras_file_is_read_as_what_was_checked(file: str, models: Path, tmp_path: Path) -> None:
    """Keras goes by the name, so one file that is a zip and HDF5 at once would escape."""
    other = tmp_path / {"toy.keras": "toy.h5", "toy.h5": "toy.keras"}[file]
    shutil.copyfile(models / file, other)
    assert f"rename it to `{file}`" in str(refused(other, tmp_path).hint)


def test_weights_in_other_files_are_not_read(models: Path, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "toy.h5"
    shutil.copyfile(models / "toy.h5", path)
    with h5py.File(path, "r+") as file:
        del file["model_weights"]
        file["model_weights"] = h5py.ExternalLink(str(models / "toy.h5"), "model_weights")
    assert "`model_weights` of the file is an external link" in refused(path, tmp_path).message
    with h5py.File(path, "r+") as file:
        del file["model_weights"]
        file.create_dataset("model_weights", (1,), "f4", external=[(str(tmp_path / "toy.bin"), 0, 4)])
    assert "`model_weights` is in another file" in refused(path, tmp_path).message
