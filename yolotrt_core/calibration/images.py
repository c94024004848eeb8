"""Selection of calibration images, and their batches, deterministic on every machine."""

from __future__ import annotations

import functools
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.progress import progress
from yolotrt_core.console.text import counted
from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.media import images
from yolotrt_core.store import code_digest
from yolotrt_core.store.code_digest import core_digest
from yolotrt_core.types import ChannelOrder, Fit, Json, Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# The best of those measured on calibration images; figures and script in the calibrators' README.
DEFAULT_IMAGES = 128
# No measurable loss with two different selections of images (same README).
ENOUGH_IMAGES = 64
_MAX_UNREADABLE = 0.1
_BATCH = 4


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Source of calibration images.

    Attributes:
        where: folder or data set YAML (its `train` part). count: maximum number of images.
        seed: seed of the selection, if there are more. bits: see `ImageOptions`.
    """

    where: str | Path
    count: int = DEFAULT_IMAGES
    seed: int = 0
    bits: int = images.FULL_DEPTH


class ImageDigests:
    """SHA-256 of image files; each file is hashed once, and again only after a change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def of(self, file: Path) -> str:
        """Return the digest of a file.

        Raises:
            UsageError: not a regular file, or not readable.
        """
        try:
            found = file.stat()
        except OSError:
            return sha256_of(file)  # raises the error
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known.get(file)
        if known is None or known[0] != state:
            known = self._known[file] = (state, sha256_of(file))
        return known[1]


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """Images of one calibration, in order, with the SHA-256 of each file."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    sha256s: tuple[str, ...]
    seed: int
    digests: ImageDigests = field(compare=False, repr=False)
    bits: int = images.FULL_DEPTH

    @property
    def sha256(self) -> str:
        """Digest of the images in order and of the preprocessing."""
        return digest_of_images(self.sha256s, self.bits)


def digest_of_images(sha256s: Sequence[str], bits: int = images.FULL_DEPTH) -> str:
    """Return one digest of files in this order and of the preprocessing: our code, OpenCV, and `ImageOptions.bits`.

    The input size is part of the calibrator's cache key.
    """
    parts = [*sha256s, str(bits), core_digest(code_digest.PIXELS), images.opencv_version()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def choose(data: CalibrationData, digests: ImageDigests | None = None) -> ChosenImages:
    """Choose images: all, or a seeded sample of the sorted names.

    Args:
        digests: digests of the build, to hash each file once.

    Raises:
        UsageError: missing folder, or no image.
    """
    files, names, _ = reader.list_images(data.where, "train", reader.IMAGES_HINT)
    # Own Fisher-Yates shuffle: the standard library's may differ between Python versions.
    order = list(range(len(files)))
    numbers = random.Random(data.seed)
    for last in range(len(order) - 1, 0, -1):
        other = int(numbers.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    chosen = order[: data.count]
    digests = digests or ImageDigests()
    if len(chosen) < ENOUGH_IMAGES:
        _log.warning("only %s: at least %d are recommended", counted(len(chosen), "calibration image"), ENOUGH_IMAGES)
    return ChosenImages(
        tuple(files[i] for i in chosen),
        tuple(names[i] for i in chosen),
        tuple(digests.of(files[i]) for i in chosen),
        data.seed,
        digests,
        data.bits,
    )


class CalibrationImages:
    """Calibration images of a build, chosen and hashed at the first use, shared by all candidates."""

    def __init__(self, data: CalibrationData, digests: ImageDigests) -> None:
        self._data, self._digests = data, digests

    @functools.cached_property
    def chosen(self) -> ChosenImages:
        """The images in order; see `choose`."""
        return choose(self._data, self._digests)


@dataclass(slots=True)
class Batches:
    """Batches of calibration images as network input, read lazily.

    Attributes:
        size: (height, width) of the network input. layout: its layout. order: of its channels. fit: how images become
            it.
        skipped: names of unreadable images. seen: number of images used.
    """

    chosen: ChosenImages
    size: tuple[int, int]
    layout: Layout = "nchw"
    order: ChannelOrder = "rgb"
    fit: Fit = "letterbox"
    skipped: list[str] = field(default_factory=list)
    seen: int = 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32 (b, C, H, W) or (b, H, W, C), in 0..1.

        Raises:
            UsageError: an image changed since it was chosen, or over 10% cannot be read.
        """
        frames = []
        with progress("calibrating", total=len(self.chosen.files)) as bar:
            for number, frame in enumerate(self._frames(), 1):
                frames.append(frame)
                if len(frames) == _BATCH:
                    yield preprocess(frames, self.size, layout=self.layout, order=self.order, fit=self.fit)[0]
                    frames = []
                bar.update(completed=number + len(self.skipped))
            if frames:
                yield preprocess(frames, self.size, layout=self.layout, order=self.order, fit=self.fit)[0]

    def _frames(self) -> Iterator[NDArray[np.uint8]]:
        maximum = len(self.chosen.files) * _MAX_UNREADABLE
        for file, name, sha256 in zip(self.chosen.files, self.chosen.names, self.chosen.sha256s, strict=True):
            try:
                frame = images.read(file, depth=self.chosen.bits, alpha="a" in self.order)
            except UsageError as err:
                self.skipped.append(name)
                _log.warning("%s; skipped", err)
                if len(self.skipped) > maximum:
                    raise UsageError(
                        f"{len(self.skipped)} of {len(self.chosen.files)} calibration images cannot be read, "
                        f"over {_MAX_UNREADABLE:.0%}; the last: {err}",
                        hint="remove or replace them",
                    ) from err
                continue
            if self.chosen.digests.of(file) != sha256:
                raise UsageError(f"`{file}` changed during calibration", hint="run the build again")
            self.seen += 1
            yield frame

    def facts(self) -> dict[str, Json]:
        """Return the used images, for the record."""
        skipped = set(self.skipped)
        return {
            "pictures": self.seen,
            "skipped": _json(self.skipped),
            "seed": self.chosen.seed,
            "used": _json([n for n in self.chosen.names if n not in skipped]),
        }


def _json(names: Sequence[str]) -> list[Json]:
    return list(names)
