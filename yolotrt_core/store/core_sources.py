"""Which modules of the core each kind of answer is made by: their text is in the answer's cache key.

What only finds, names, shows or keeps things is in none of them, so that an edit there makes nothing again.
"""

from __future__ import annotations

from yolotrt_core.store.code_digest import source_digest


def _core(*names: str) -> tuple[str, ...]:
    return tuple(f"yolotrt_core.{name}" for name in names)


# What the code of any stage may use without naming it.
CONTRACT = _core("frames", "options", "serialization", "sessions", "stages", "types")
# From the bytes of an image to the network's input.
PIXELS = _core("calibration", "jpeg", "letterbox", "pictures", "types")
STAGE = (*CONTRACT, *_core("handed_on", "pipeline", "plans", "ranges", "shapes", "work"))
DETECTING = (
    *CONTRACT,
    *PIXELS,
    *_core("detector", "inputs", "nms", "image_processes", "image_worker", "prefetch", "reading", "rect"),
)
PREDICTIONS = (*DETECTING, *_core("predictions"))
GATE = (
    *PREDICTIONS,
    *_core("agreement", "coco", "dataset", "evaluate", "gate", "labels", "metric", "reader", "yolo_labels"),
)
SENSITIVITY = (*DETECTING, *_core("agreement", "handed_on", "ranges", "sensitivity", "shapes"))
TIMING = (*DETECTING, *_core("bench", "speed", "timing"))


def core_digest(modules: tuple[str, ...]) -> str:
    """Return the SHA-256 over the text of modules of the core, one of the tuples above."""
    return source_digest(tuple(sorted(set(modules))), "the core")
