"""Base class of the ONNX passes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any, ClassVar

from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import BuildRequest


class OnnxPass:
    """A pass that needs `onnx`; by default it applies to the precision it is named after.

    Attributes:
        tools: distributions whose versions can change the output.
    """

    name: ClassVar[str]
    stage_version: ClassVar[int] = 1
    order: ClassVar[int] = 50
    needs_calibration: ClassVar[bool] = False
    tools: ClassVar[tuple[str, ...]] = ("onnx",)

    def available(self) -> Availability:
        return tools_available(("onnx",), "pip install onnx onnxsim")

    def fingerprint(self, options: Any) -> Mapping[str, str]:
        return versions(*self.tools)

    def applies(self, request: BuildRequest, options: Any) -> bool:
        return request.precision == self.name


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of the installed distributions."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
