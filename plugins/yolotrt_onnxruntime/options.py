"""Options of the builder `onnxruntime`."""

from __future__ import annotations

from dataclasses import dataclass

from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class OnnxRuntimeOptions:
    """How a session uses the CPU."""

    threads: int = option(
        0, help="Threads per inference; 0 uses one per physical core", minimum=0, maximum=1024, in_key=False
    )
