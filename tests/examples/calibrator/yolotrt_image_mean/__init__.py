"""Calibrator `image_mean`: each image's largest magnitude, averaged, so that one odd image decides little."""

from yolotrt_core.plugin.dependencies import tool_versions, tools_available
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.options import NoOptions

YOLOTRT_API = 1
TOOLS = ("onnx", "onnxruntime")


class ImageMeanCalibrator:
    name = "image_mean"
    stage_version = 1
    sources = ("yolotrt_image_mean.work",)
    Options = NoOptions
    needs_images = True

    def available(self):
        return tools_available(TOOLS)

    def fingerprint(self, options):
        return tool_versions(TOOLS)

    def calibrate(self, model, batches, request, options, out):
        from yolotrt_image_mean import work

        work.calibrate(model, batches, out)
        return self.name


@hookimpl
def yolotrt_calibrators():
    return (ImageMeanCalibrator(),)
