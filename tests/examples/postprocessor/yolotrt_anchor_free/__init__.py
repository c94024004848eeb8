"""Postprocessor `anchor_free`: heads with a column for each box and no objectness, as YOLOv8 and later have them."""

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.plugin.stages import Availability

YOLOTRT_API = 1


class AnchorFreePostprocessor:
    name = "anchor_free"
    stage_version = 1
    sources = ("yolotrt_anchor_free.decode",)
    Options = NoOptions
    heads = frozenset({"yolov8"})

    def available(self):
        return Availability(True)

    def fingerprint(self, options):
        return {}

    def decode(self, raw, spec, geometry, selection, options):
        from yolotrt_anchor_free import decode

        return decode.decode(raw, spec, geometry, selection)


@hookimpl
def yolotrt_postprocessors():
    return (AnchorFreePostprocessor(),)
