"""YOLOv5's segmentation head: the detection head with mask coefficients, and the prototypes of the masks.

Written for yolotrt from the published architecture; attribute names match the checkpoints' weights.
"""

# mypy: disallow-subclassing-any=False
# (torch is `follow_imports = "skip"` in pyproject.toml, so nn.Module is Any here.)
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from yolotrt_torch.activations import Activation
from yolotrt_torch.yolov5_layers import Conv, Detect


class Proto(nn.Module):
    """Prototypes of masks, (B, masks, 2 ny, 2 nx), from the finest level's features."""

    def __init__(self, c1: int, hidden: int, masks: int, *, act: Activation = nn.SiLU) -> None:
        super().__init__()
        self.cv1 = Conv(c1, hidden, 3, act=act)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.cv2 = Conv(hidden, hidden, 3, act=act)
        self.cv3 = Conv(hidden, masks, act=act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(self.cv2(self.upsample(self.cv1(x))))
        return out


class Segment(Detect):
    """The segmentation head.

    Attributes:
        nm: mask coefficients per row, after the class scores; not in 0..1. npr: channels before the prototypes.
        no: 5 + classes + coefficients.
    """

    def __init__(
        self,
        nc: int,
        anchors_px: Sequence[Sequence[float]],
        channels: Sequence[int],
        stride: Sequence[int],
        nm: int,
        npr: int,
        *,
        act: Activation = nn.SiLU,
    ) -> None:
        super().__init__(nc, anchors_px, channels, stride, extra=nm)
        self.nm, self.npr = nm, npr
        self.proto = Proto(channels[0], npr, nm, act=act)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor] | Tensor, Tensor]:
        """Return what `Detect` does, with coefficients (B, N, no), and the prototypes (B, nm, h, w)."""
        return super().forward(x), self.proto(x[0])
