"""Tells a stage that ran out of memory, whatever its library calls that, from one with a bug."""

from __future__ import annotations

import re

from yolotrt_core.errors import StageError
from yolotrt_core.types import BuildRequest

# How torch, onnxruntime and C++ say it, which have no exception of their own for it.
_SAID = re.compile(r"can't allocate memory|failed to allocate memory|bad[_ ]alloc|out of memory", re.IGNORECASE)


def out_of_memory(err: BaseException, request: BuildRequest) -> StageError | None:
    """Return the error to show for `err` if memory ran out, else None."""
    if not isinstance(err, MemoryError) and not _SAID.search(str(err)):
        return None
    shapes = [p.max for p in request.profiles] or [(request.batch, request.height, request.width)]
    shown = " and ".join(f"batch {batch} of {height}x{width} pixels" for batch, height, width in shapes)
    return StageError(
        f"memory does not suffice for {shown}",
        hint="build for a smaller `--batch` or `--imgsz`" + (", or a smaller `--profile`" if request.profiles else ""),
    )
