"""Class names: TensorFlow's formats have no place of their own for them."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from yolotrt_core.datasets.class_names import labels_from_file, labels_from_yaml, labels_in_order, numbered_labels
from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_tf.formats import Format

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
_HINT = "pass the classes with `--tf-names FILE`, one name a line"


def labels_of(path: Path, form: Format, classes: int, given: Path | None) -> tuple[str, ...]:
    """Return the name of each class.

    They come from the file the user named; else from what upstream's exporters leave inside a model
    (`metadata.yaml` in a SavedModel folder, a text of Python literals appended to a TensorFlow Lite
    file as a zip); else they are `class0`, `class1` ... Files beside a model are not read: they are
    not part of the source's digest.

    Raises:
        UsageError: the file cannot be read, or has another number of names than the model classes.

    Source:
        ultralytics/yolov5 v7.0, export.py, add_tflite_metadata.
    """
    if given is not None:
        names, where = labels_from_file(given), f"`{given}`"
    else:
        names, where = _from_model(path, form) or (), f"the metadata of `{path.name}`"
    if not names:
        log.warning("the model does not name its %d classes, so they are numbered; %s", classes, _HINT)
        return numbered_labels(classes)
    if len(names) != classes:
        raise UsageError(f"the model has {classes} classes, {where} names {len(names)}", hint=_HINT)
    return names


def _from_model(path: Path, form: Format) -> tuple[str, ...] | None:
    if form == "savedmodel" and (path / "metadata.yaml").is_file():
        return labels_from_yaml((path / "metadata.yaml").read_text(encoding="utf-8", errors="replace"))
    if form == "tflite" and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                first = archive.infolist()[0]
                if first.file_size > _MOST_BYTES:
                    return None
                return labels_in_order(literal(archive.read(first).decode("utf-8")).get("names"))
        except (zipfile.BadZipFile, IndexError, ValueError, AttributeError, RuntimeError, NotImplementedError):
            return None  # what others append there is none of our business
    return None
