"""Labelled and found masks as COCO's compressed run-length encodings, by faster-coco-eval.

Polygons are filled as COCO's own functions do, at the image's resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import PluginError, UsageError
from yolotrt_core.evaluation.stored_masks import StoredMasks

if TYPE_CHECKING:
    from yolotrt_core.datasets.dataset import LabeledImage
    from yolotrt_core.datasets.segmentation import Segmentation

Rle = Mapping[str, Any]
# Polygons may leave the image, but filling takes time and memory by their length.
_MOST_OUTSIDE = 1.0  # image sizes


def coco_library() -> Any:
    """Import faster-coco-eval.

    Raises:
        PluginError: it is not installed.
    """
    try:
        import faster_coco_eval
    except ImportError as err:
        raise PluginError(
            "mAP needs faster-coco-eval, which is not installed", hint="`pip install yolotrt-core[eval]`"
        ) from err
    return faster_coco_eval


def labeled_masks(image: LabeledImage, height: int, width: int) -> tuple[Rle, ...]:
    """Return the masks of an image of this size in pixels, in the order of its boxes.

    Raises:
        UsageError: a mask of another size, far outside the image, or corrupted.
        PluginError: faster-coco-eval is not installed.
    """
    masks = []
    for number, mask in enumerate(image.masks, 1):
        assert mask is not None  # partly labelled data are refused when they are read
        try:
            masks.append(_encoded(mask if image.in_pixels else mask.scaled(width, height), height, width))
        except (ValueError, RuntimeError, IndexError) as err:
            raise UsageError(f"invalid mask of object {number} of `{image.name}`: {first_line(err)}") from err
    return tuple(masks)


def _encoded(mask: Segmentation, height: int, width: int) -> Rle:
    coco = coco_library().mask

    if mask.rle is not None:
        if mask.rle["size"] != [height, width]:
            raise ValueError(f"expected `size` [{height}, {width}] as the image, found {mask.rle['size']}")
        if isinstance(mask.rle["counts"], list):
            return dict(coco.frPyObjects(dict(mask.rle), height, width))
        given = {"size": [height, width], "counts": mask.rle["counts"].encode()}
        coco.decode([given])  # the only function that refuses text that ends early
        return given
    for part in mask.polygons:
        for values, size in ((part[::2], width), (part[1::2], height)):
            if values.min() < -_MOST_OUTSIDE * size or values.max() > (1 + _MOST_OUTSIDE) * size:
                raise ValueError(f"expected coordinates in an image of {width}x{height} pixels, found {part.tolist()}")
    return dict(coco.merge(coco.frPyObjects([part.tolist() for part in mask.polygons], height, width)))


def found_masks(images: Sequence[StoredMasks]) -> Iterator[list[Rle]]:
    """Yield the masks of each image, in the order of its detections."""
    coco = coco_library().mask

    for masks in images:
        height, width = masks.size
        given = [{"size": [height, width], "counts": runs.tolist()} for runs in masks]
        yield [dict(each) for each in coco.frPyObjects(given, height, width)] if given else []
