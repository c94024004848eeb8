"""mAP of masks against COCO's algorithm written out on bitmaps, and labelled masks that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.datasets.dataset import LabeledImage
from yolotrt_core.datasets.segmentation import Segmentation
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.coco_map import Bootstrap, Scored, Truth, differences
from yolotrt_core.evaluation.coco_masks import found_masks, labeled_masks
from yolotrt_core.evaluation.stored_masks import StoredMasks
from yolotrt_core.types import Detections, Masks

SIZE = (24, 40)
LABELS = ("cat", "dog", "cow")
Bitmap = NDArray[np.bool_]


def blob(random: np.random.Generator) -> Bitmap:
    """Return an ellipse with a hole, cut at the image's border."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    cx, cy, a, b = random.uniform(0, SIZE[1]), random.uniform(0, SIZE[0]), *random.uniform(3, 12, 2)
    distance = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2
    return (distance < 1) & (distance > random.choice([-1.0, 0.1]))


def segmentation(bitmap: Bitmap) -> Segmentation:
    """Return uncompressed run lengths, counted one pixel after the other."""
    counts, last = [0], False
    for value in bitmap.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return Segmentation(rle={"size": list(SIZE), "counts": counts})


def stored(bitmaps: list[Bitmap]) -> StoredMasks:
    windows = np.array([[0, 0, SIZE[1], SIZE[0]]] * len(bitmaps), np.int32).reshape(-1, 4)
    return StoredMasks.of(Masks(SIZE, windows, tuple(np.packbits(b, axis=1) for b in bitmaps)))


class Images:
    """Random truth and detections of one kind of object or another, as bitmaps."""

    def __init__(self, seed: int, images: int = 12, spread: float = 0.1) -> None:
        random = np.random.default_rng(seed)
        self.truth: list[list[tuple[Bitmap, int, bool]]] = []
        self.found: list[list[tuple[Bitmap, int, float]]] = []
        for _ in range(images):
            own = [(blob(random), int(random.integers(0, 2)), random.random() < 0.2) for _ in range(4)]
            rows = []
            for bitmap, class_id, _ in own:
                for _ in range(int(random.integers(0, 3))):
                    rows.append((bitmap ^ (random.random(SIZE) < random.uniform(0, spread)), class_id, random.random()))
            rows += [(blob(random), int(random.integers(0, 3)), random.random()) for _ in range(2)]
            self.truth.append(own)
            self.found.append(sorted(rows, key=lambda row: -row[2]))

    def scored(self) -> Scored:
        truth = []
        for own in self.truth:
            image = labeled(*(segmentation(bitmap) for bitmap, _, _ in own))
            ids, crowd = np.array([c for _, c, _ in own]), np.array([c for _, _, c in own], bool)
            truth.append(Truth(np.zeros((len(own), 4)), ids, crowd, *SIZE, labeled_masks(image, *SIZE)))
        found = [
            Detections(
                np.zeros((len(rows), 4), np.float32),
                np.array([score for _, _, score in rows], np.float32),
                np.array([class_id for _, class_id, _ in rows], np.int64),
            )
            for rows in self.found
        ]
        return Scored(truth, found, LABELS, found_masks([stored([b for b, _, _ in rows]) for rows in self.found]))

    def average_precision(self, class_id: int, threshold: float) -> float:
        """COCO's: greedy matching by score, crowds ignored and matched by overlap with the detection, 101 recalls."""
        scores, hits, count = [], [], 0
        for own, rows in zip(self.truth, self.found, strict=True):
            real = [b for b, c, crowd in own if c == class_id and not crowd]
            crowds = [b for b, c, crowd in own if c == class_id and crowd]
            taken, count = set[int](), count + len(real)
            for bitmap, found_class, score in rows:
                if found_class != class_id:
                    continue
                ious = [0 if n in taken else (bitmap & b).sum() / (bitmap | b).sum() for n, b in enumerate(real)]
                if ious and max(ious) >= threshold:
                    taken.add(int(np.argmax(ious)))
                elif any((bitmap & b).sum() / bitmap.sum() >= threshold for b in crowds):
                    continue
                hits.append(bool(ious) and max(ious) >= threshold)
                scores.append(score)
        right = np.array(hits)[np.argsort(-np.array(scores), kind="stable")].cumsum()
        recall, precision = right / count, right / np.arange(1, len(hits) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        return float(np.mean([best[place] if place < len(best) else 0 for place in places]))


def labeled(*masks: Segmentation, in_pixels: bool = True) -> LabeledImage:
    none = np.zeros((len(masks), 4))
    return LabeledImage(
        Path("a.jpg"), "a.jpg", none, none[:, 0].astype(np.int64), none[:, 0] > 0, in_pixels, masks=masks
    )


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_bitmaps(seed: int) -> None:
    images = Images(seed)
    accuracy = images.scored().accuracy()
    assert [c.label for c in accuracy.classes] == ["cat", "dog"]
    thresholds = np.linspace(0.5, 0.95, 10).tolist()
    for c in accuracy.classes:
        expected = [images.average_precision(c.class_id, threshold) for threshold in thresholds]
        assert 0.2 < expected[0] < 1
        assert (c.ap50, c.ap50_95) == pytest.approx((expected[0], np.mean(expected)), abs=1e-9)
    assert accuracy.map50_95 == pytest.approx(np.mean([c.ap50_95 for c in accuracy.classes]))


def test_worse_masks_are_significant() -> None:
    good, bad = Images(0, spread=0.02).scored(), Images(0, spread=0.3).scored()
    _, difference = differences(good, bad, Bootstrap(100))
    assert difference.high is not None
    assert difference.high < 0


def test_no_mask_is_found() -> None:
    images = Images(0)
    images.found = [[] for _ in images.found]
    assert images.scored().accuracy().map50 == 0


def test_forms_of_one_mask() -> None:
    """A rectangle in whole pixels is the same as polygon, normalized polygon and run lengths."""
    bitmap = np.zeros(SIZE, bool)
    bitmap[3:9, 4:20] = True
    corners = np.array([4.0, 3, 20, 3, 20, 9, 4, 9])
    normalized = Segmentation((corners / ([40, 24] * 4),))
    forms = [
        labeled_masks(labeled(segmentation(bitmap)), *SIZE),
        labeled_masks(labeled(Segmentation((corners,))), *SIZE),
        labeled_masks(labeled(normalized, in_pixels=False), *SIZE),
    ]
    text = forms[0][0]["counts"].decode()
    forms.append(labeled_masks(labeled(Segmentation(rle={"size": list(SIZE), "counts": text})), *SIZE))
    assert len({form["counts"] for (form,) in forms}) == 1
    assert next(found_masks([stored([bitmap])])) == [dict(forms[0][0])]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Segmentation(rle={"size": [40, 24], "counts": [960]}), r"expected `size` \[24, 40\] as the image"),
        (Segmentation(rle={"size": [24, 40], "counts": "zz~~"}), "RLE"),
        (Segmentation(rle={"size": [24, 40], "counts": "PPP"}), "RLE"),
        (Segmentation(rle={"size": [24, 40], "counts": "b1:"}), "expected 960"),
        (Segmentation(rle={"size": [24, 40], "counts": "é"}), "RLE"),
        (Segmentation((np.array([0, 0, 1e9, 0, 1e9, 1e9]),)), "expected coordinates in an image of 40x24 pixels"),
    ],
)
def test_a_mask_that_cannot_be_used(wrong: Segmentation, message: str) -> None:
    good = Segmentation((np.array([0.0, 0, 9, 0, 9, 9]),))
    with pytest.raises(UsageError, match=rf"invalid mask of object 2 of `a.jpg`: .*{message}"):
        labeled_masks(labeled(good, wrong), *SIZE)
