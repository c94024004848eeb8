"""Calibrator `image_mean`: each image's largest magnitude, averaged, so that one odd image decides little."""

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Calibrator

YOLOTRT_API = 1


class ImageMeanCalibrator(Calibrator):
    name = "image_mean"
    title = "Image mean calibrator"
    requires = ("onnx", "onnxruntime")

    def calibrate(self, model, batches, request, options, out):
        from yolotrt_image_mean import work

        work.calibrate(model, batches, out)
        return self.name


@hookimpl
def yolotrt_calibrators():
    return (ImageMeanCalibrator(),)
