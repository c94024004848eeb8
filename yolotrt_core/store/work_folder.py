"""Work folder of a build: its owner file, and cleaning up after a failure."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from yolotrt_core.store.action import Action
from yolotrt_core.store.names import OWNER, STAGE_LOG

log = logging.getLogger(__name__)


def write_owner(work: Path, action: Action) -> None:
    """Record the building process and the inputs that gc must keep for it."""
    owner = {
        "pid": os.getpid(),
        "host": platform.node(),
        "stage": action.stage,
        "plugin": action.plugin.name,
        "inputs": sorted(action.inputs.values()),
    }
    (work / OWNER).write_text(json.dumps(owner), encoding="utf-8")


def read_owner(work: Path) -> dict[str, Any]:
    """Read what `write_owner` recorded; empty if unknown."""
    try:
        owner = json.loads((work / OWNER).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def clear(work: Path) -> None:
    """Delete a work folder, or a file or link in its place."""
    if work.exists() or work.is_symlink():
        shutil.rmtree(work)


def clean_after_failure(work: Path, *, keep_log: bool) -> Path | None:
    """Delete a failed build's folder except a non-empty log; return the log's path."""
    kept = work / STAGE_LOG
    try:
        if not (keep_log and kept.is_file() and kept.stat().st_size):
            shutil.rmtree(work, ignore_errors=True)
            return None
        for entry in work.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != kept:
                entry.unlink(missing_ok=True)
    except OSError as err:
        # The build's own error is the one to report.
        log.debug("cannot clean `%s`: %s", work, err)
    return kept
