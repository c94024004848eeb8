"""Target GPUs of an engine, as compute capabilities."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from yolotrt_core.errors import UsageError
from yolotrt_tensorrt.library import Library

if TYPE_CHECKING:
    import tensorrt

CURRENT = "CURRENT"
_SYNTAX = re.compile(r"(?:sm_?)?(\d{1,2}\.\d|\d{2,3})", re.IGNORECASE | re.ASCII)


def parse(text: str | None) -> tuple[str, ...]:
    """Read a list of compute capabilities.

    Args:
        text: comma-separated, each like `86`, `8.6` or `sm_86`, or `current` for this machine's GPU;
            None for the library's default.

    Returns:
        TensorRT's names, e.g. ("SM86", "CURRENT"), in the given order, without duplicates.

    Raises:
        UsageError: an invalid item.
    """
    names = []
    for item in (text or "").split(",") if text is not None else ():
        found = _SYNTAX.fullmatch(item.strip())
        if not found and item.strip().lower() != "current":
            raise UsageError(
                f"`--tensorrt-compute-capabilities` expects numbers like 86 or 8.6, or `current`, found `{text}`"
            )
        names.append(f"SM{found[1].replace('.', '')}" if found else CURRENT)
    return tuple(dict.fromkeys(names))


def numbers(targets: tuple[str, ...]) -> list[int]:
    """Return the compute capabilities of named targets, e.g. [86], without `CURRENT`."""
    return [int(name[2:]) for name in targets if name != CURRENT]


def refuse_unknown(library: Library, targets: tuple[str, ...]) -> None:
    """Refuse targets without kernels in the library.

    Raises:
        UsageError: the library cannot choose targets, or a target is unknown.
    """
    if not targets:
        return
    if not library.has("ComputeCapability", "IBuilderConfig.set_compute_capability"):
        raise UsageError(
            f"{library} builds only for this machine's GPU: `--tensorrt-compute-capabilities` needs `tensorrt_rtx`",
            hint="omit the option, or add `--tensorrt-module tensorrt_rtx`",
        )
    known = [n for n in library.trt.ComputeCapability.__members__ if n == CURRENT or n.startswith("SM")]
    for name in targets:
        if name not in known:
            raise UsageError(
                f"{library} has no kernels for compute capability `{name}`", hint="supported: " + ", ".join(known)
            )


def apply(library: Library, config: tensorrt.IBuilderConfig, targets: tuple[str, ...]) -> None:
    """Set the target GPUs of a build; without any, the library's portable set applies.

    Raises:
        UsageError: see `refuse_unknown`. StageError: the library refuses one (`CURRENT` without a GPU).
    """
    refuse_unknown(library, targets)
    if not targets or not library.has(
        "ComputeCapability", "IBuilderConfig.set_compute_capability", "IBuilderConfig.num_compute_capabilities"
    ):
        return
    with library.collecting() as messages:
        config.num_compute_capabilities = len(targets)
        for index, name in enumerate(targets):
            if not config.set_compute_capability(library.trt.ComputeCapability.__members__[name], index):
                raise library.failure(f"build for `{name}`", messages)
