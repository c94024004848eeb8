"""Decode float (B, 4 + C, N): cx, cy, w, h in input pixels, then a score in 0..1 for each class."""

import numpy as np

from yolotrt_core.inference.candidates import corners, raw_output, select


def decode(raw, spec, geometry, selection):
    output = raw_output(raw, spec.outputs[0], len(geometry))
    return [_image(columns, placed, selection) for columns, placed in zip(output, geometry, strict=True)]


def _image(columns, placed, selection):
    rows = np.flatnonzero(np.fmax.reduce(columns[4:]) > np.float32(selection.conf))  # of thousands, a few
    boxes = columns[:, rows].T
    return select(corners(boxes[:, :4]), boxes[:, 4:], placed, selection, rows)[0]
