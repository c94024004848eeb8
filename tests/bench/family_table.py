"""Every detection model of the family script: parity, detections and engines, as a Markdown table.

    python tests/bench/family_table.py FOLDER [NAME ...] --image PICTURE [--columns parity,detect,fp16,dynamic,int8]

FOLDER holds NAME.pt, NAME.npz (`images`, upstream's `output0`) and NAME.json (`size`, `detections` of PICTURE) as the
family script writes them, and NAME.float64.npy of `family_float64.py`. A cell that cannot be filled has the reason.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolotrt_core.api import Detector, build
from yolotrt_core.errors import YolotrtError
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.types import Detections, Selection
from yolotrt_yolov5.decode import decode

BOX = 0.05  # pixels of the source image
SCORE = 1e-3
FEW = 1e-5  # relative L2 error that is always enough


@dataclass(frozen=True)
class Case:
    """One model of the folder."""

    path: Path
    image: Path
    store: Path
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        return int(self.facts["size"])

    def detector(self) -> Detector:
        """The fp32 ONNX in onnxruntime."""
        return Detector.open(self.path, precision="fp32", builder="onnxruntime", imgsz=self.size, store=self.store)

    def build(self, precision: Any, builder: str, out: str, **settings: Any) -> Any:
        folder = Path(out)
        return build(
            self.path, precision=precision, builder=builder, imgsz=self.size, store=self.store, out=folder, **settings
        )


def parity(case: Case) -> str:
    """ONNX in onnxruntime against upstream in float64, and upstream's own float32 error."""
    exact = case.path.with_suffix(".float64.npy")
    if not exact.exists():
        return "no float64 answer"
    with np.load(case.path.with_suffix(".npz")) as arrays:
        images, upstream = arrays["images"], arrays["output0"].astype(np.float64)
    want = np.load(exact)
    with case.detector() as detector:
        found = detector.session.infer(images)["output0"].astype(np.float64)
    norm = np.linalg.norm(want)
    error, own = np.linalg.norm(found - want) / norm, np.linalg.norm(upstream - want) / norm
    return f"{'ok' if error <= max(FEW, 2 * own) else 'FAILED'} {error:.1e} (upstream {own:.1e})"


def detect(case: Case) -> str:
    """Boxes of the picture file, from letterbox to NMS, against upstream's; and those of upstream's float64 answer."""
    frame, selection = cv2.imread(str(case.image)), Selection(conf=0.25, iou=0.45, max_det=1000)
    with case.detector() as detector:
        found = detector.detect([frame], selection)[0]
        spec = detector.spec.model
    exact = case.path.with_suffix(".float64.npy")
    text = f"{_equal(found, case.facts['detections'])} of {len(case.facts['detections'])}, found {len(found.boxes)}"
    if exact.exists():
        placed = preprocess([frame], (case.size, case.size))[1]
        rows = {"output0": np.load(exact).astype(np.float32)}
        text += f" (upstream in float64: {_equal(decode(rows, spec, placed, selection)[0], case.facts['detections'])})"
    return text


def _equal(found: Detections, wanted: list[Any]) -> int:
    """Count the wanted boxes that were found."""
    count = 0
    for *box, score, kind in wanted:
        near = (found.class_ids == kind) & (np.abs(found.scores - score) <= SCORE)
        count += bool((near & (np.abs(found.boxes - box).max(1) <= BOX)).any())
    return count


def engine(precision: str, **settings: Any) -> Callable[[Case], str]:
    """Build with the installed TensorRT-RTX; without a GPU the engine is not run."""

    def cell(case: Case) -> str:
        with tempfile.TemporaryDirectory() as out:
            return f"ok {case.build(precision, 'tensorrt', out, **settings).path.stat().st_size / 1e6:.1f} MB"

    return cell


COLUMNS: dict[str, Callable[[Case], str]] = {
    "parity": parity,
    "detect": detect,
    "fp16": engine("fp16"),
    "dynamic": engine("fp16", dynamic=True),
    "int8": engine("int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--calib-data", type=Path)
    parser.add_argument("--columns", default="parity,detect,fp16")
    args = parser.parse_args()
    chosen = {name: COLUMNS[name] for name in args.columns.split(",")}
    if args.calib_data:
        COLUMNS["int8"] = chosen["int8"] = engine("int8", calib_data=args.calib_data, calib_images=8)
    print(f"| model | {' | '.join(chosen)} |\n|{'---|' * (len(chosen) + 1)}")
    for path in sorted(args.folder.glob("*.pt")):
        if args.names and path.stem not in args.names:
            continue
        with tempfile.TemporaryDirectory() as store:
            case = Case(path, args.image, Path(store), json.loads(path.with_suffix(".json").read_text()))
            cells = [_cell(column, case) for column in chosen.values()]
        print(f"| {path.stem} | {' | '.join(cells)} |", flush=True)


def _cell(column: Callable[[Case], str], case: Case) -> str:
    try:
        return column(case)
    except YolotrtError as err:
        text = str(err).partition("\n")[0].replace("|", "/")
        gate = re.search(r"failed the accuracy gate: .*(agreement [\d.]+)", text)  # which runs after the build
        return f"built, refused by the gate: {gate[1]}" if gate else text[:160]


if __name__ == "__main__":
    main()
