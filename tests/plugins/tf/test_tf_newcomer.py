"""What `plugins/README.md` tells a newcomer, done as it says: a Keras exporter out of `plugin.new`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from yolotrt_core.scaffold import write_plugin

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.tf, pytest.mark.slow]

TEST = """
import shutil
from pathlib import Path

import pytest
import yolotrt_mine

from yolotrt_core.sources import sha256_of
from yolotrt_core.testing import ExporterContract
from yolotrt_core.types import ModelSource


class TestMine(ExporterContract):
    plugin, name = yolotrt_mine, "mine"

    @pytest.fixture
    def source(self, tmp_path):
        path = Path(shutil.copy({model!r}, tmp_path))
        return ModelSource(path, sha256_of(path), "small")

    def test_equal_exports_are_equal_bytes(self):
        pytest.skip("tf2onnx numbers its names anew each time; the built-in exporter renames them")
"""


def test_the_three_functions_of_the_guide_make_a_keras_exporter(tmp_path: Path) -> None:
    import warnings

    import keras_yolo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_yolo.make(batch=1, units="pixels", order="anchor").save(tmp_path / "small.keras")
    folder = write_plugin("mine", "exporter", tmp_path)
    guide = (ROOT / "plugins" / "README.md").read_text()
    functions = re.search(r"```python\n(def _read.*?)```", guide, re.DOTALL)
    assert functions is not None
    work = folder / "yolotrt_mine" / "exporter.py"
    text = work.read_text()
    first, last = text.index("class Network("), text.index("def _grid(")
    text = text[:first] + functions[1] + "\n\n" + text[last:]
    work.write_text(text.replace("labels import metadata_of", "labels import metadata_of, numbered_labels"))
    plugin = folder / "yolotrt_mine" / "__init__.py"
    plugin.write_text(plugin.read_text().replace('MAGIC = b"mine\\n"', 'MAGIC = b"PK\\x03\\x04"'))
    (folder / "tests" / "test_mine.py").write_text(TEST.format(model=str(tmp_path / "small.keras")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed, 1 skipped" in done.stdout
