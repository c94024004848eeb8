"""yolotrt: builds validated TensorRT engines from YOLOv5 checkpoints, and runs them.

from yolotrt_core import Detector, build

engine = build("yolov5n.pt", precision="fp16")
with Detector.open(engine=engine.path) as detector:
    detections = detector.detect([frame])
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

# onnxruntime sends usage data to its vendor unless this is set when it is first imported; its function
# `disable_telemetry_events` stops only a part. Set here, since every plugin and process of ours imports this package
# before any framework. Overwritten, not defaulted: nothing that we run may use the network unasked.
_TELEMETRY = "ORT_DISABLE_TELEMETRY"
if "onnxruntime" in sys.modules and os.environ.get(_TELEMETRY) != "1":
    import logging

    logging.getLogger(__name__).warning(
        "onnxruntime was imported before yolotrt and may report to its vendor; import yolotrt first, or set `%s=1`",
        _TELEMETRY,
    )
os.environ[_TELEMETRY] = "1"

if TYPE_CHECKING:
    from yolotrt_core.api import Detector, Engine, build
    from yolotrt_core.errors import YolotrtError
    from yolotrt_core.media.frames import Nv12Frame
    from yolotrt_core.pipeline.build_options import BuildSettings
    from yolotrt_core.types import Classes, Detections, Selection

# Imported on first use, so that `import yolotrt_core` alone is fast.
_HOME = {
    "BuildSettings": "yolotrt_core.api",
    "Classes": "yolotrt_core.types",
    "Detections": "yolotrt_core.types",
    "Detector": "yolotrt_core.api",
    "Engine": "yolotrt_core.api",
    "Nv12Frame": "yolotrt_core.media.frames",
    "Selection": "yolotrt_core.types",
    "YolotrtError": "yolotrt_core.errors",
    "build": "yolotrt_core.api",
}
__all__ = [
    "BuildSettings",
    "Classes",
    "Detections",
    "Detector",
    "Engine",
    "Nv12Frame",
    "Selection",
    "YolotrtError",
    "build",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `yolotrt_core` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
