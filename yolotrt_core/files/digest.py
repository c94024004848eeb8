"""SHA-256 of files and folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from yolotrt_core.errors import UsageError, os_error_reason


def sha256_of(path: Path) -> str:
    """Return the digest of a file or folder, as `ModelSource.sha256` has it.

    Raises:
        UsageError: see `sha256_of_file` and `sha256_of_folder`.
    """
    return sha256_of_folder(path) if path.is_dir() else sha256_of_file(path)


def sha256_of_file(path: Path) -> str:
    """Return the digest of a file's content as 64 hex digits.

    Raises:
        UsageError: not a regular file, or not readable.
    """
    try:
        if not path.is_file():
            raise UsageError(f"`{path}` is neither a file nor a model folder")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as err:
        raise UsageError(f"cannot read `{path}`: {os_error_reason(err)}") from err


def sha256_of_folder(folder: Path) -> str:
    """Return the digest of a folder's sorted relative names and contents, as 64 hex digits.

    SHA-256 of the JSON list of [relative POSIX name, SHA-256 of the file], sorted by name;
    empty folders, times and permissions do not count.

    Raises:
        UsageError: no file, a symbolic link, a special file, or an unreadable file inside.
    """
    files: list[list[str]] = []
    try:
        for path in folder.rglob("*"):
            if path.is_symlink():
                raise UsageError(
                    f"`{path}` is a symbolic link, which is not supported in a model folder",
                    hint="copy the folder with links resolved, `cp -rL`",
                )
            if not path.is_dir():
                files.append([path.relative_to(folder).as_posix(), sha256_of_file(path)])
    except OSError as err:
        raise UsageError(f"cannot read `{folder}`: {os_error_reason(err)}") from err
    if not files:
        raise UsageError(f"the model folder `{folder}` is empty")
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()
