"""Contract tests for plugins: subclass the class of your stage's kind, give its fixtures, run pytest.

    from yolotrt_core.testing import PassContract

    class TestPolish(PassContract):
        plugin = yolotrt_polish
        name = "polish"

Every contract checks the rules in `yolotrt_core.plugin.stages` for a kind; your own tests check what your stage
computes. Needs pytest and NumPy; contracts that look into an ONNX need onnx and onnxruntime.
"""

from __future__ import annotations

from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.testing.builders import BuilderContract
from yolotrt_core.testing.calibrators import CalibratorContract
from yolotrt_core.testing.exporters import ExporterContract
from yolotrt_core.testing.model import small_model
from yolotrt_core.testing.passes import PassContract
from yolotrt_core.testing.postprocessors import PostprocessorContract
from yolotrt_core.testing.session import MemorySideCache
from yolotrt_core.testing.stage import StageContract, assert_readable

__all__ = [
    "BuilderContract",
    "CalibratorContract",
    "ExporterContract",
    "MemorySideCache",
    "PassContract",
    "PostprocessorContract",
    "StageContract",
    "assert_readable",
    "reference_images",
    "small_model",
]
