"""YOLOv5's classification head.

Written for yolotrt from the published architecture; attribute names match the checkpoints' weights.
"""

# mypy: disallow-subclassing-any=False
# (torch is `follow_imports = "skip"` in pyproject.toml, so nn.Module is Any here.)
from __future__ import annotations

import torch
from torch import Tensor, nn

from yolotrt_torch.activations import Activation
from yolotrt_torch.yolov5_layers import Conv

# Of ImageNet's red, green and blue. Tensors here, since tracing warns of those made in `forward`.
_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
_DEVIATION = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


class Linear(nn.Linear):
    """PyTorch's layer without initialization on the `meta` device, as `yolov5_layers.Conv2d`."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Classify(nn.Module):
    """The classification head: a convolution, the average over the feature map, one score per class.

    Attributes:
        nc: number of classes. stride: of the network; set by it.
    """

    def __init__(self, c1: int, nc: int, hidden: int, k: int, s: int, p: int, g: int, *, act: Activation) -> None:
        super().__init__()
        self.nc = nc
        self.stride: tuple[int, ...] = ()
        self.conv = Conv(c1, hidden, k, s, p, g, act=act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.0)
        self.linear = Linear(hidden, nc)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, classes): logits, no probabilities."""
        scores: Tensor = self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))
        return scores


def normalized(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W), RGB in 0..1, as the classification networks were trained on them.

    Source:
        ultralytics/yolov5 v7.0, utils/augmentations.py, `classify_transforms`.
    """
    return (images - _MEAN) / _DEVIATION
