"""Size of the images that a classification model was trained with, read before every build: without NumPy."""

from __future__ import annotations

import zipfile
from pathlib import Path

from yolotrt_core.errors import UsageError

_CLASSIFIER = b"ClassificationModel"
_MAX_PICKLE = 1 << 24  # bytes; those of official checkpoints have 0.1 MB


def find_trained_size(path: Path) -> int | None:
    """Return the side in pixels of a classification checkpoint's images; None for all other files.

    Quick for others: only the names in the pickle are read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
                return None
            if _CLASSIFIER not in archive.read(pickles[0]):
                return None
        from yolotrt_torch.checkpoint_archive import open_archive
        from yolotrt_torch.classify_structure import is_classifier, trained_size
        from yolotrt_torch.saved_forms import select_model
        from yolotrt_torch.untrusted_values import convert_value_errors

        with convert_value_errors(), open_archive(path) as opened:
            model, _ = select_model(opened.root)
    except (UsageError, zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return None  # the export reports what is wrong with the file
    return trained_size(model) if is_classifier(model) else None
