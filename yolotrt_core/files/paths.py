"""User-supplied paths, and reading of text files."""

from __future__ import annotations

from pathlib import Path

from yolotrt_core.errors import UsageError, os_error_reason


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
    """Read a user's text file.

    Args:
        description: description of the file for errors.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as err:
        raise UsageError(f"cannot read {description} `{path}`: {os_error_reason(err)}") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"cannot read {description} `{path}`: byte {err.start} is not UTF-8") from err
