"""Calibrator `picture_mean`: each picture's largest magnitude, averaged, so that one odd picture decides little."""

from importlib import metadata

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.options import NoOptions
from yolotrt_core.stages import Availability

YOLOTRT_API = 1


class PictureMeanCalibrator:
    name = "picture_mean"
    stage_version = 1
    sources = ("yolotrt_picture_mean.work",)
    Options = NoOptions
    needs_images = True

    def available(self):
        return Availability(True)

    def fingerprint(self, options):
        return {name: metadata.version(name) for name in ("onnx", "onnxruntime")}

    def calibrate(self, model, batches, request, options, out):
        from yolotrt_picture_mean import work

        work.calibrate(model, batches, out)
        return self.name


@hookimpl
def yolotrt_calibrators():
    return (PictureMeanCalibrator(),)
