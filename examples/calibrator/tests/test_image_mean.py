import numpy as np
import yolotrt_image_mean

from yolotrt_core.calibration.ranges import read_ranges
from yolotrt_core.testing import CalibratorContract, small_model
from yolotrt_core.types import BuildRequest


class TestImageMean(CalibratorContract):
    plugin, name = yolotrt_image_mean, "image_mean"


def test_the_mean_of_the_largest(tmp_path):
    images = np.zeros((4, 3, 64, 64), np.float32)
    images[:, 0, 0, 0] = [0.1, 0.2, 0.3, 1.0]
    stage, request = yolotrt_image_mean.ImageMeanCalibrator(), BuildRequest("fp32", 1, 64, 64)
    stage.calibrate(small_model(tmp_path), iter([images[:3], images[3:]]), request, stage.Options(), tmp_path)
    assert abs(read_ranges(tmp_path / "ranges.json").tensors["images"] - 0.4) < 1e-6
