"""Thresholds of an evaluation."""

from __future__ import annotations

from yolotrt_core.types import Selection

MAX_DET = 300
# As upstream's val.py: nearly all candidates, since the metric ranks them.
SELECTION = Selection(conf=0.001, iou=0.6, multi_label=True, max_det=MAX_DET)
