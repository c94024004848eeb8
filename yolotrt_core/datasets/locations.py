"""Places of a data set's images: what a description or list refers to, from several folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from yolotrt_core.console.text import counted
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.media.inputs import list_lines

_SHOWN = 3  # missing files in an error
_SAMPLE = 64  # names that decide which folder is meant


def find_below(names: Sequence[str], roots: Iterable[Path]) -> list[Path]:
    """Return the path of each name in the folder that has most of them, whether it exists there or not.

    Raises:
        UsageError: as `existing_path`.
    """
    sample = names[:: max(1, len(names) // _SAMPLE)]
    best, most = None, -1
    for root in distinct(roots):
        count = sum(existing_path(within(root, name)) is not None for name in sample)
        if count > most:
            best, most = root, count
        if count == len(sample):
            break
    assert best is not None
    return [within(best, name) for name in names]


def within(root: Path, name: str) -> Path:
    """Return the path of a name in a folder; separators of Windows are understood where the file is not there."""
    place = root / name
    return root / name.replace("\\", "/") if "\\" in name and existing_path(place) is None else place


def distinct(places: Iterable[Path]) -> list[Path]:
    """Return places in order, each once, however it is written."""
    found: dict[str, Path] = {}
    for place in places:
        found.setdefault(os.path.normpath(place), place)
    return list(found.values())


def refuse_missing_images(files: Sequence[Path], names: Sequence[str], where: Path, roots: Iterable[Path]) -> None:
    """Refuse a data set that refers to images that do not exist.

    Raises:
        UsageError: names the first of them.
    """
    missing = [name for file, name in zip(files, names, strict=True) if existing_path(file) is None]
    if not missing:
        return
    few = ", ".join(f"`{name}`" for name in missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    tried = "searched in " + ", ".join(f"`{root}`" for root in distinct(roots))
    if len(missing) == len(names):
        raise UsageError(f"cannot find the images of `{where}`: {few} missing", hint=tried)
    raise UsageError(
        f"`{where}` refers to {counted(len(missing), 'image')} of {len(names)} that cannot be found: {few}",
        hint=f"add or remove them; {tried}",
    )


def find_parts(base: str, texts: Sequence[str], description: Path) -> tuple[Path, list[Path]]:
    """Find the places that a description's part refers to.

    Args:
        base: its `path`, or `.`: relative to the description, to the working folder (as YOLOv5 has it), or to the
            folder above the description, which then lies in YOLOv5's `data/`. texts: relative to that; Roboflow writes
            `../train/images` for a folder next to the description.

    Returns:
        The folder meant by `base`, and the places.

    Raises:
        UsageError: nothing there; names all places that were searched.
    """
    given = user_path(base)
    tried: list[Path] = []
    for above in (description.parent, Path.cwd(), description.parent.parent):
        root = given if given.is_absolute() else within(above, base)
        places = []
        for text in texts:
            options = distinct(within(root, t) for t in (text, text.removeprefix("../")))
            found = next((place for place in options if existing_path(place) is not None), None)
            if found is None:
                tried += options
                break
            places.append(found)
        else:
            return root, places
    missing = distinct(tried)
    raise UsageError(
        f"`{description}` refers to `{missing[0]}`, which does not exist",
        hint="correct its `path`; searched for " + ", ".join(f"`{place}`" for place in missing),
    )


def read_image_list(file: Path, base: Path | None = None) -> list[Path]:
    """Read a text file with the path of an image per line, relative to the file, the data set or the working folder.

    Args:
        base: folder of the data set.

    Raises:
        UsageError: the file cannot be read, or an image does not exist.
    """
    names = list(list_lines(file))
    roots = [file.parent, *([base] if base else []), Path.cwd()]
    files = find_below(names, roots)
    refuse_missing_images(files, names, file, roots)
    return files
