"""Files of data sets that several tests write."""

from __future__ import annotations

import json
from pathlib import Path


def write_coco(root: Path, categories: list[dict[str, object]], **changes: object) -> Path:
    """Write annotations of one image, `a.jpg`, with a box of category 18 and a crowd of 17."""
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 17, "bbox": [8, 3, 4, 4], "iscrowd": 1},
    ]
    images = [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 40}]
    path = root / "instances_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories} | changes))
    return path
