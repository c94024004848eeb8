"""Paths as users write them: on a command line, in a recipe, in a variable of the environment; and what is there."""

from __future__ import annotations

import os
from pathlib import Path

from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason


def user_path(text: str | Path) -> Path:
    """Return the path that a text means, with `~` and `~NAME` as the home folder; reads no disk.

    Raises:
        UsageError: nobody has that home folder, or the text has a NUL character.
    """
    if "\0" in str(text):
        raise UsageError(f"{str(text)!a} is no path: it has a NUL character")
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
        hint: what to say where it cannot be told.

    Raises:
        UsageError: as `user_path`; the system refuses to look, for instance at a name that is too long.
    """
    path = user_path(text)
    try:
        return path if path.exists() else None
    except OSError as err:
        raise UsageError(f"cannot read `{text}`: {os_error_reason(err)}", hint=hint) from err


def text_of(path: Path, what: str) -> str:
    """Read a text file of the user's.

    Args:
        what: what it is, for the error.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as err:
        raise UsageError(f"cannot read {what} `{path}`: {os_error_reason(err)}") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"cannot read {what} `{path}`: byte {err.start} is no UTF-8") from err


def refuse_unwritable(folder: Path) -> None:
    """Check that files can be put into a folder, which need not exist yet; makes nothing.

    Raises:
        ArtifactError: something on its path is no folder, or must not be written to.
    """
    hint = "choose another folder with `--out`"
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists() or p.is_symlink())
        if not place.is_dir():
            raise ArtifactError(f"cannot write to `{folder}`: `{place}` is not a folder", hint=hint)
        if not os.access(place, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot write to `{folder}`: `{place}` must not be written to", hint=hint)
    except OSError as err:
        raise ArtifactError(f"cannot write to `{folder}`: {os_error_reason(err)}", hint=hint) from err
