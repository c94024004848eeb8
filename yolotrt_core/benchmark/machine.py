"""Facts about the machine that benchmark figures depend on."""

from __future__ import annotations

import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

from yolotrt_core.types import Json

if TYPE_CHECKING:
    pass


def machine_facts() -> dict[str, Json]:
    """Return what figures depend on: processor, GPU with its clocks now, peak memory of this process."""
    facts: dict[str, Json] = {
        "peak_host_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "processor": _processor(),
        "gpu": None,
    }
    program = shutil.which("nvidia-smi")
    if program is None:
        return facts
    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "memory.used", "temperature.gpu")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return facts
    first = asked.stdout.splitlines()[0].split(", ") if asked.stdout else []
    facts["gpu"] = dict(zip((f.replace(".", "_") for f in fields), first, strict=False))
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - read line by line, stopped early
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"
