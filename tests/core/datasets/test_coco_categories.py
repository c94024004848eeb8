"""COCO's official category ids."""

from __future__ import annotations

import pytest

from yolotrt_core.datasets.coco_categories import coco_category_ids
from yolotrt_core.errors import UsageError

# From `categories` of instances_val2017.json; compared in full with torchvision's list of 91 names when written.
PUBLISHED = {
    "person": 1, "fire hydrant": 11, "stop sign": 13, "bench": 15, "giraffe": 25, "backpack": 27, "umbrella": 28,
    "handbag": 31, "bottle": 44, "wine glass": 46, "bed": 65, "dining table": 67, "toilet": 70, "tv": 72,
    "refrigerator": 82, "book": 84, "toothbrush": 90,
}  # fmt: skip


def test_ids_are_those_of_the_annotation_files() -> None:
    assert dict(zip(PUBLISHED, coco_category_ids(list(PUBLISHED)), strict=True)) == PUBLISHED
    assert coco_category_ids(("Dining_Table", "person")) == (67, 1)


def test_a_class_that_coco_lacks() -> None:
    with pytest.raises(UsageError, match="needs a model of COCO's classes, found class `helmet`"):
        coco_category_ids(("person", "helmet"))
