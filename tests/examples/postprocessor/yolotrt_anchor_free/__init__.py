"""Postprocessor `anchor_free`: heads with a column for each box and no objectness, as in YOLOv8 and later."""

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Postprocessor

YOLOTRT_API = 1


class AnchorFreePostprocessor(Postprocessor):
    name = "anchor_free"
    title = "Anchor-free decoding"
    heads = frozenset({"yolov8"})

    def decode(self, raw, spec, geometry, selection, options):
        from yolotrt_anchor_free import decode

        return decode.decode(raw, spec, geometry, selection)


@hookimpl
def yolotrt_postprocessors():
    return (AnchorFreePostprocessor(),)
