"""What `plugins/README.md` tells a newcomer, done as it says: a Keras exporter out of `plugin.new`, to its engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from new_plugin import install, runnable, shown_commands

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.tf, pytest.mark.slow]


def _run(command: list[str], folder: Path, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{inherited}", "TF_CPP_MIN_LOG_LEVEL": "3"} | variables
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def guide() -> str:
    return (ROOT / "plugins" / "README.md").read_text().partition("### Keras")[2].partition("### Other kinds")[0]


@pytest.fixture(scope="module")
def plugin(guide: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the new plugin, with the guide's files put in as they stand there."""
    folder = tmp_path_factory.mktemp("newcomer")
    (create, (_, name)) = shown_commands(guide)[:2]
    _run(runnable(create), folder, folder)
    files = re.findall(r"`(yolotrt_mine/\w+\.py)`.*?```python\n(.*?)```", guide, re.DOTALL)
    assert len(files) == 3
    for path, text in files:
        assert (folder / name / path).is_file()
        (folder / name / path).write_text(text)
    install(folder / name)
    return folder / name


def test_the_commands_of_the_guide_make_an_engine_and_find_objects(guide: str, plugin: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="a real engine needs TensorRT-RTX (extra `rtx`)")
    pytest.importorskip("cv2", reason="detect reads images (extra `opencv`)")
    commands = shown_commands(guide)
    assert len(commands) < 10
    assert commands[2] == ["pip", "install", "-e", "'.[test]'"]
    test, example, build, detect = commands[3:]
    done = _run(runnable(test), plugin, plugin)
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
    _run(runnable(example), plugin, plugin)
    assert build == ["yolotrt", "build", "--weights", "model.keras", "--exporter", "mine", "--precision", "fp16"]
    done = _run(runnable([*build, "--store", "store"]), plugin, plugin)
    engine = plugin / "engines" / "model-fp16" / "model-fp16.engine"
    assert engine.stat().st_size > 10_000
    assert engine.with_name(engine.name + ".json").is_file()
    assert re.search(r"export +mine +built", done.stderr)
    done = _run(runnable([*detect, "--store", "store"]), plugin, plugin)
    assert "class0" in done.stdout


# Every model's input is named as Keras names it: only the export gives it the name `images`.
_EXPORT = """
import hashlib, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import keras, numpy as np, onnxruntime
sys.path.insert(0, sys.argv[1])
import keras_yolo, yolotrt_mine
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource
stage = yolotrt_mine.MineExporter()
for batch, units, order in ((None, "normalised", "cell"), (1, "pixels", "anchor")):
    path = Path(f"{units}.keras")
    inner = keras_yolo.make(batch=batch, units=units, order=order)
    images = keras.Input((64, 64, 3), batch_size=batch)
    assert images.name != "images"
    if not path.exists():
        keras.Model(images, inner(images)).save(path)
    source = ModelSource(path, sha256_of(path), "small")
    assert stage.inspect(source).imgsz == (64, 64)
    requests = BuildRequest("fp32", 1, 64, 64), BuildRequest("fp32", 2, 64, 64), BuildRequest("fp32", 1, 64, 64, True)
    for request in requests:
        spec = stage.export(source, request, stage.Options(), Path())
        assert spec.inputs[0].shape == ("batch" if request.dynamic else request.batch, 3, 64, 64)
        stored = np.load("reference.npz")
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == list(spec.inputs[0].shape)
        (answer,) = session.run(["output0"], {"images": stored["images"]})
        wanted = keras_yolo.make(units="pixels", order="anchor")(stored["images"].transpose(0, 2, 3, 1), training=False)
        assert np.abs(answer - np.asarray(wanted)).max() < 1e-3
        print(units, request.batch, request.dynamic, hashlib.sha256(Path("model.onnx").read_bytes()).hexdigest())
"""


def test_any_layout_and_batch_gives_the_project_s_rows_and_the_same_bytes_in_every_process(
    plugin: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _EXPORT, str(Path(__file__).parent)]
    told = [_run(command, tmp_path, plugin, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")]
    assert len(told[0].splitlines()) == 6
    assert told[0] == told[1]


def test_a_size_the_model_does_not_take_is_told_in_one_line(plugin: Path) -> None:
    code = """
import sys
from pathlib import Path
import yolotrt_mine
from yolotrt_core.errors import StageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource
from yolotrt_mine.example import write_model
path = write_model(Path("other.keras"))
stage = yolotrt_mine.MineExporter()
try:
    stage.export(ModelSource(path, sha256_of(path), "m"), BuildRequest("fp32", 1, 128, 128), stage.Options(), Path())
except StageError as err:
    print(err.message, err.hint, sep="|")
"""
    told = _run([sys.executable, "-c", code], plugin, plugin).stdout
    assert told.startswith("the network does not take images (1, 3, 128, 128): ")
    assert told.endswith("|see `--imgsz` and `--batch`\n")
    assert told.count("\n") == 1
