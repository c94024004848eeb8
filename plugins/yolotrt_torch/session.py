"""Inference of a checkpoint by PyTorch, as a reference for engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.input_shapes import refuse_unfit
from yolotrt_core.plugin.stages import Session
from yolotrt_core.types import BuildRequest, EngineSpec, ModelSource
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.exporter import outputs_of, spec_of
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.yolov5_model import Network, fuse

if TYPE_CHECKING:
    from yolotrt_torch.options import TorchOptions


class TorchSession(Session):
    """A network on the CPU in float32; not thread-safe."""

    def __init__(self, network: Network, spec: EngineSpec) -> None:
        self._network: Network | None = network
        self.spec = spec

    def infer(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        """Run one batch; see `yolotrt_core.plugin.stages.Session.infer`.

        Raises:
            UsageError: a dtype or shape that differs from the spec, or the session is closed.
        """
        if self._network is None:
            raise UsageError("the model is closed", hint="open it again")
        refuse_unfit(images, self.spec)
        return outputs_of(self._network, np.ascontiguousarray(images))

    def close(self) -> None:
        """Free the network."""
        self._network = None


def open_source(source: ModelSource, request: BuildRequest, options: TorchOptions) -> TorchSession:
    """Open a checkpoint for images of the request's shape, or of its profiles.

    Raises:
        UsageError: not a YOLOv5 detection checkpoint.
    """
    checkpoint = read_checkpoint(source.path, options)
    network = network_from_checkpoint(checkpoint)
    spec = EngineSpec(
        model=spec_of(network, checkpoint, source, request, options),
        precision="fp32",
        builder="torch",
        tools={"torch": torch.__version__},
        profiles=request.profiles,
        engine_sha256=source.sha256,
    )
    fuse(network)
    return TorchSession(network, spec)
