"""User-supplied paths, and reading of text files."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason


def user_path(text: str | Path) -> Path:
    """Expand `~` and `~NAME` in a path, without reading the disk.

    Raises:
        UsageError: unknown home folder, or a NUL character.
    """
    if "\0" in str(text):
        raise UsageError(f"invalid path {str(text)!a}: it has a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError as err:
        raise UsageError(
            f"`{text}` starts with a home folder that does not exist",
            hint="write the path in full, from `/`",
        ) from err


def existing_path(text: str | Path, hint: str | None = None) -> Path | None:
    """Return `user_path(text)` if a file or folder is there, else None.

    Args:
        hint: hint of the error.

    Raises:
        UsageError: as `user_path`, or the path cannot be examined, for instance because a name is too long.
    """
    path = user_path(text)
    try:
        return path if path.exists() else None
    except OSError as err:
        raise UsageError(f"cannot read `{text}`: {os_error_reason(err)}", hint=hint) from err


def read_text(path: Path, description: str) -> str:
    """Read a user's text file, without a byte-order mark.

    Args:
        description: description of the file for errors.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UsageError(f"cannot read {description} `{path}`: it is UTF-16", hint="save it as UTF-8")
        return content.decode("utf-8-sig")
    except OSError as err:
        raise UsageError(f"cannot read {description} `{path}`: {os_error_reason(err)}") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"cannot read {description} `{path}`: byte {err.start} is not UTF-8") from err


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder, which may not exist yet, is writable; creates nothing.

    Raises:
        ArtifactError: a part of its path is not a folder, or not writable.
    """
    hint = "choose another folder with `--out`"
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists() or p.is_symlink())
        if not place.is_dir():
            raise ArtifactError(f"cannot write to `{folder}`: `{place}` is not a folder", hint=hint)
        if not os.access(place, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot write to `{folder}`: `{place}` is not writable", hint=hint)
    except OSError as err:
        raise ArtifactError(f"cannot write to `{folder}`: {os_error_reason(err)}", hint=hint) from err


def sidecar_path(path: Path) -> Path:
    """Return the path of the sidecar that describes a file, for an engine its spec."""
    return path.with_name(path.name + ".json")
