"""The engines that GPU tests and benchmarks use, and a script that builds them all into a folder.

    python tests/gpu/engines.py --data DIR --out ENGINES [VARIANT ...]

A variant that is in the folder already is left alone, so that one whose framework the GPU host lacks (TensorFlow) can
be built elsewhere and carried there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_HALF_INPUT = {"fp16": {"input": "fp16"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32-b1": {"precision": "fp32"},
    "fp32-b1-exact": {"precision": "fp32", "flags": {"tensorrt": {"tf32": "off"}}},
    "fp16-b1": {"precision": "fp16"},
    "fp16-b1-i16": {"precision": "fp16", "flags": _HALF_INPUT},
    "fp16-b8": {"precision": "fp16", "batch": 8},
    "fp16-b8-dyn": {"precision": "fp16", "batch": 8, "dynamic": True},
    "fp16-b32": {"precision": "fp16", "batch": 32},
    "fp16-b32-i16": {"precision": "fp16", "batch": 32, "flags": _HALF_INPUT},
    "fp16-b8-last": {"weights": "tf/yolov5n_saved_model", "batch": 8, "flags": {"tf": {"layout": "nhwc"}}},
    "grey-fp16-b1": {"precision": "fp16", "channels": 1},
    "alpha-fp16-b1": {"precision": "fp16", "channels": 4},
    "seg-fp16-b1": {"precision": "fp16", "segments": True},
    "seg-fp16-b32": {"precision": "fp16", "batch": 32, "segments": True},
}


def engine_of(variant: str, data: Path, out: Path) -> Path:
    """Return the engine file of a variant in `out`, built if it is not there."""
    ready = list((out / variant).glob("*.engine"))
    if ready:
        return ready[0]
    # Imported late: with all engines at hand, tests need no exporter.
    from yolotrt_core.api import build

    wanted = dict(VARIANTS[variant])
    flags = {**wanted.pop("flags", {}), "gate": {"check": "off"}}  # tests/gpu/test_gpu_builds.py judges engines
    weights = data / wanted.pop("weights", "weights/yolov5n.pt")
    if wanted.pop("segments", False):
        weights = segmentation_checkpoint(weights, out / "yolov5n-seg.pt")
    if channels := wanted.pop("channels", None):
        weights = channels_checkpoint(weights, out / f"yolov5n-{channels}.pt", channels)
    settings = {"builder": "tensorrt", "imgsz": (640, 640), "flags": flags, **wanted}
    return build(weights, out=out / variant, store=out / "store", **settings).path


def segmentation_checkpoint(detector: Path, path: Path) -> Path:
    """Save YOLOv5n with its own boxes, and random masks: there are no public weights of it in the test data."""
    if path.exists():
        return path
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "plugins" / "torch_plugin"))
    import upstream_layout as layout

    from yolotrt_torch.checkpoint import read_checkpoint

    given = read_checkpoint(detector)
    config = {**given.config, "head": [*given.config["head"]]}
    config["head"][-1] = [config["head"][-1][0], 1, "Segment", ["nc", "anchors", 32, 256]]
    network = layout.lively(config)
    state = network.state_dict()
    for name, array in given.state.items():
        weight = torch.from_numpy(array).float()
        if state[name].shape == weight.shape:
            state[name].copy_(weight)
        else:  # the last convolutions: the rows of each anchor without its mask coefficients
            rows = state[name].unflatten(0, (network.detect.na, network.detect.no))
            rows[:, : 5 + network.detect.nc] = weight.unflatten(0, (network.detect.na, -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    return layout.save(path, config, network=network, names=list(given.labels), kind="SegmentationModel")


def channels_checkpoint(detector: Path, path: Path, channels: int) -> Path:
    """Save YOLOv5n with one or four input channels."""
    if path.exists():
        return path
    sys.path.insert(0, str(Path(__file__).parent.parent / "plugins" / "torch_plugin"))
    import upstream_layout as layout

    return layout.save_with_channels(detector, path, channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="default: all but those of TensorFlow")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for variant in given.variants or [v for v, wanted in VARIANTS.items() if "weights" not in wanted]:
        print(engine_of(variant, given.data, given.out), flush=True)


if __name__ == "__main__":
    main()
