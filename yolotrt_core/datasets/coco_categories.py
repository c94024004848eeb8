"""COCO's 80 classes and their category ids, from 1 to 90."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.console.text import nearest
from yolotrt_core.datasets.class_map import plain_name
from yolotrt_core.errors import UsageError

# In the order of the ids in `instances_val2017.json`, which has no category of the unused numbers.
_CLASSES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
_UNUSED = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


def coco_category_ids(labels: Sequence[str]) -> tuple[int, ...]:
    """Return the category id in COCO's own annotation files, 1 to 90, of each class of a model, by name.

    Raises:
        UsageError: a class that is not one of COCO's 80.
    """
    numbers = (number for number in range(1, 91) if number not in _UNUSED)
    ids = dict(zip(map(plain_name, _CLASSES.split(",")), numbers, strict=True))
    for label in labels:
        if plain_name(label) not in ids:
            raise UsageError(
                f"`--category-ids coco` needs a model of COCO's classes, found class `{label}`",
                hint=nearest(label, list(ids)) if len(labels) == len(ids) else "omit it: ids are the model's class ids",
            )
    return tuple(ids[plain_name(label)] for label in labels)
