"""Box and mask mAP of a segmentation model against pycocotools on the same predictions and annotation file.

    python tests/bench/mask_map.py --weights yolov5n-seg.pt --data instances_val.json

Needs pycocotools in the same environment, which reads the annotations itself. Exit code 1 if a figure differs by more
than 1e-6. Also prints the time per image and the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolotrt_core.api import Detector
from yolotrt_core.datasets import reader
from yolotrt_core.evaluation.coco_map import Accuracy, Bootstrap
from yolotrt_core.evaluation.coco_masks import found_masks
from yolotrt_core.evaluation.evaluator import Evaluator
from yolotrt_core.evaluation.predictions import Predictions, predict
from yolotrt_core.evaluation.selection import MAX_DET, SELECTION
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.location import open_store

_LIMIT = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    registry, store = Registry.discover(), open_store(asked.store)
    began = time.perf_counter()
    with Detector.open(
        asked.weights, store=store, registry=registry, precision="fp32", builder="onnxruntime"
    ) as detector:
        labels = detector.labels
        data = reader.read(asked.data, labels, options=reader.LabelOptions(masks=True))
        files = [image.path for image in data.images]
        predicted = predict(detector, files, SELECTION, store=store, registry=registry)
        ran = time.perf_counter()
        ours = Evaluator(data, store, registry, bootstrap=Bootstrap(0)).evaluate(detector)
    scored = time.perf_counter()
    assert ours.masks is not None
    print(f"{ours.images} images, {sum(len(d) for d in predicted.boxes if d)} masks")
    print(f"ms per image: {(ran - began) / ours.images * 1e3:.1f} to open and detect, ", end="")
    print(f"{(scored - ran) / ours.images * 1e3:.1f} to score; ", end="")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    document = json.loads(asked.data.read_text())
    results = _results(predicted, [image.name for image in data.images], document, labels)
    worst = 0.0
    for kind, accuracy in (("bbox", ours.accuracy), ("segm", ours.masks.accuracy)):
        theirs = _pycocotools(asked.data, results, kind)
        found = _figures(accuracy)
        assert theirs.keys() == found.keys(), "other classes"
        difference = max(abs(theirs[name][n] - found[name][n]) for name in theirs for n in (0, 1))
        shown = ", ".join(f"{value:.6f}" for value in (*found[""], *theirs[""]))
        print(f"{kind}: mAP50, mAP50-95, and pycocotools': {shown}; largest difference by class {difference:.1e}")
        worst = max(worst, difference)
    sys.exit(worst > _LIMIT)


def _figures(accuracy: Accuracy) -> dict[str, tuple[float, float]]:
    return {"": (accuracy.map50, accuracy.map50_95)} | {c.label: (c.ap50, c.ap50_95) for c in accuracy.classes}


def _results(
    predicted: Predictions, names: list[str], document: Any, labels: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]]:
    ids = {str(image["file_name"]): image["id"] for image in document["images"]}
    categories = {str(c["name"]): c["id"] for c in document["categories"]}
    results: dict[str, list[dict[str, Any]]] = {"bbox": [], "segm": []}
    masks = found_masks([each for each in predicted.masks if each is not None])
    for name, found in zip(names, predicted.boxes, strict=True):
        if found is None:
            continue
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), next(masks), strict=True)
        for (x1, y1, x2, y2), score, class_id, mask in rows:
            if labels[class_id] not in categories:
                continue
            entry = {"image_id": ids[name], "category_id": categories[labels[class_id]], "score": score}
            results["bbox"].append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
            results["segm"].append(entry | {"segmentation": mask})
    return results


def _pycocotools(path: Path, results: dict[str, list[dict[str, Any]]], kind: str) -> dict[str, tuple[float, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(results[kind]), kind)
        evaluation.params.maxDets = [1, 10, MAX_DET]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class), all areas
    names = [c["name"] for c in truth.loadCats(evaluation.params.catIds)]
    occurs = {n: precision[:, :, n] for n in range(len(names)) if precision[0, 0, n] > -1}
    found = {names[n]: (float(own[0].mean()), float(own.mean())) for n, own in occurs.items()}
    mean = [sum(each[n] for each in found.values()) / len(found) for n in (0, 1)]
    return {"": (mean[0], mean[1]), **found}


if __name__ == "__main__":
    main()
