"""Facts about the machine that benchmark figures depend on."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from yolotrt_core.types import Json

if TYPE_CHECKING:
    pass
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def machine_facts() -> dict[str, Json]:
    """Return processor, GPU with its current clocks, and peak memory of this process."""
    facts: dict[str, Json] = {
        "peak_host_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "processor": _processor(),
        "gpu": None,
    }
    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "memory.used", "temperature.gpu")
    for values in query_gpus(fields)[:1]:
        facts["gpu"] = dict(zip((f.replace(".", "_") for f in fields), values, strict=False))
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - read line by line, stopped early
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"


def query_gpus(fields: Sequence[str]) -> list[list[str]]:
    """Return these fields of every GPU by nvidia-smi; nothing without a GPU or driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
