"""Predictions of an engine on a list of images, cached in the store."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.calibration.images import ImageDigests, digest_of_images
from yolotrt_core.console.progress import Bar, progress
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.stored_masks import StoredMasks, masks_from_arrays, masks_to_arrays
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.image_loader import read_ahead
from yolotrt_core.inference.rect_detector import RectDetector
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store import code_digest
from yolotrt_core.store.action import Action, Record
from yolotrt_core.store.code_digest import core_digest
from yolotrt_core.store.store import Store
from yolotrt_core.types import Classes, Detections, Json, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

FILE = "predictions.npz"
_MOST_UNREADABLE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Detections of one engine.

    Attributes:
        boxes: by index into the list of images, without masks; None for an unreadable one. Of a classification model
            with the scores of all classes.
        masks: the masks of each; None for an unreadable one and of a model without.
        sizes: (height, width) in pixels of each; (0, 0) for an unreadable one.
        record: the artifact that holds them. from_cache: whether no image was run.
    """

    boxes: tuple[Detections | None, ...]
    masks: tuple[StoredMasks | None, ...]
    sizes: tuple[tuple[int, int], ...]
    record: Record
    from_cache: bool

    @property
    def found(self) -> list[Detections | None]:
        """Detections with their masks as bitmaps, which take several times the memory of `masks`."""
        return [
            found if found is None or masks is None else replace(found, masks=masks.unpacked())
            for found, masks in zip(self.boxes, self.masks, strict=True)
        ]

    @property
    def read(self) -> list[int]:
        """Indices of the images that could be read."""
        return [i for i, f in enumerate(self.boxes) if f is not None]


def predict(
    detector: Detector | RectDetector,
    files: Sequence[Path],
    selection: Selection,
    *,
    store: Store,
    registry: Registry,
    digests: ImageDigests | None = None,
) -> Predictions:
    """Run an engine on images; cached by engine, images and thresholds.

    Args:
        digests: those of the build, so that no file is hashed again.

    Raises:
        UsageError: over 10% of the images cannot be read.
        StageError: the engine failed.
    """
    # A model run in its own framework names its exporter there.
    runner = registry.stages["builder"].get(detector.spec.builder) or registry.get("exporter", detector.spec.builder)
    spec = detector.spec
    digests = digests or ImageDigests()
    action = Action(
        stage="predict",
        plugin=runner.session_identity,
        request={
            "selection": to_json(selection),
            "rect": isinstance(detector, RectDetector),
            "model": to_json(replace(spec.model, provenance={})),
            "session": dict(detector.opened_by),
            "postprocessor": dict(detector.decoded_by),
        },
        options={},
        inputs={
            "engine": spec.engine_sha256 or spec.onnx_sha256,
            "pictures": digest_of_images([digests.of(f) for f in files], detector.image_bits),
        },
        tools=spec.tools,
        core_sha256=core_digest(code_digest.PREDICTIONS),
    )

    def make(folder: Path) -> Mapping[str, Json]:
        reading = _Reading(files, detector)
        with progress("evaluating", total=len(files)) as bar:
            found, masks = [], []
            for each in detector.stream(reading.frames(bar), selection):
                # Bitmaps of all images would fill the memory.
                masks.append(None if each.masks is None else StoredMasks.of(each.masks))
                found.append(replace(each, masks=None))
        _save(folder / "out" / FILE, reading, found, masks)
        return {"pictures": len(found), "skipped": [str(files[i].name) for i in reading.skipped]}

    record, from_cache = store.obtain(action, make, verify=True)
    return _load(store.read(record.outputs[FILE].sha256), len(files), record, from_cache)


@dataclass(slots=True)
class _Reading:
    """Reads files in order, and records sizes and unreadable files."""

    files: Sequence[Path]
    detector: Detector | RectDetector
    indices: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    def frames(self, bar: Bar) -> Iterator[NDArray[np.uint8]]:
        for index, frame in enumerate(read_ahead(self.files, self.detector)):
            if isinstance(frame, UsageError):
                self.skipped.append(index)
                _log.warning("%s; skipped", frame)
                if len(self.skipped) > len(self.files) * _MOST_UNREADABLE:
                    raise UsageError(
                        f"{len(self.skipped)} of {len(self.files)} images cannot be read, "
                        f"over {_MOST_UNREADABLE:.0%}; the last: {frame}",
                        hint="remove or replace them",
                    ) from frame
                continue
            self.indices.append(index)
            self.sizes.append((frame.shape[0], frame.shape[1]))
            yield frame
            bar.update(completed=index + 1)


def _save(path: Path, reading: _Reading, found: Sequence[Detections], masks: Sequence[StoredMasks | None]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {
        "indices": np.array(reading.indices, np.int64),
        "sizes": np.array(reading.sizes, np.int64).reshape(-1, 2),
        "counts": np.array([len(d) for d in found], np.int64),
        "truncated": np.array([d.truncated for d in found], np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes for d in found)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(d.scores for d in found)]),
        "class_ids": np.concatenate([np.zeros(0, np.int64), *(d.class_ids for d in found)]),
        **masks_to_arrays(masks),
    }
    if classes := [d.classes.scores for d in found if d.classes is not None]:
        arrays["class_scores"] = np.stack(classes)
    np.savez_compressed(path, **arrays)


def _load(data: bytes, count: int, record: Record, from_cache: bool) -> Predictions:
    import numpy as np

    found: list[Detections | None] = [None] * count
    masks: list[StoredMasks | None] = [None] * count
    sizes = [(0, 0)] * count
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        arrays = dict(held)  # the file decompresses an array whenever it is asked for
    bounds = np.cumsum(arrays["counts"])[:-1]
    parts = [np.split(arrays[name], bounds) for name in ("boxes", "scores", "class_ids")]
    stored = masks_from_arrays(arrays, arrays["counts"].tolist(), arrays["sizes"].tolist())
    for place, (index, own) in enumerate(zip(arrays["indices"].tolist(), stored, strict=True)):
        boxes, scores, class_ids = (part[place] for part in parts)
        classes = Classes(arrays["class_scores"][place]) if "class_scores" in arrays else None
        found[index] = Detections(boxes, scores, class_ids, int(arrays["truncated"][place]), classes=classes)
        masks[index] = own
        sizes[index] = (int(arrays["sizes"][place][0]), int(arrays["sizes"][place][1]))
    return Predictions(tuple(found), tuple(masks), tuple(sizes), record, from_cache)
