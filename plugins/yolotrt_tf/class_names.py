"""Class names of TensorFlow models, whose formats have no field for them."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.class_names import labels_from_file, labels_from_yaml, labels_in_order, numbered_labels
from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_tf.formats import Format

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_HINT = "pass the class names with `--tf-names FILE`, one per line"


def labels_of(path: Path, form: Format, classes: int, given: Path | None) -> tuple[str, ...]:
    """Return the name of each class.

    They come from the user's file; else from what upstream's exporters write into a model (`metadata.yaml` in a
    SavedModel folder, Python literals in a zip appended to a TensorFlow Lite file); else they are `class0`,
    `class1` ... Files next to a model are not read: they are not part of the source's digest.

    Raises:
        UsageError: the file cannot be read, or the numbers of names and classes differ.

    Source:
        ultralytics/yolov5 v7.0, export.py, add_tflite_metadata.
    """
    if given is not None:
        names, where = labels_from_file(given), f"`{given}`"
    else:
        names, where = stated_labels(path, form), f"the metadata of `{path.name}`"
    if not names:
        log.warning("the model has no names for its %s: numbering them; %s", counted(classes, "class"), _HINT)
        return numbered_labels(classes)
    if len(names) != classes:
        raise UsageError(f"the model has {classes} classes, but {where} has {len(names)} names", hint=_HINT)
    return names


def stated_labels(path: Path, form: Format) -> tuple[str, ...]:
    """Return the class names in a model, empty if it has none."""
    return _from_model(path, form) or ()


def _from_model(path: Path, form: Format) -> tuple[str, ...] | None:
    if form == "savedmodel" and (path / "metadata.yaml").is_file():
        return labels_from_yaml((path / "metadata.yaml").read_text(encoding="utf-8", errors="replace"))
    if form == "tflite" and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                first = archive.infolist()[0]
                if first.file_size > _MAX_BYTES:
                    return None
                return labels_in_order(literal(archive.read(first).decode("utf-8")).get("names"))
        except (zipfile.BadZipFile, IndexError, ValueError, AttributeError, RuntimeError, NotImplementedError):
            return None  # data that other tools appended
    return None
