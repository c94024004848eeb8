"""Calibration images, activation ranges and TensorRT calibration caches."""
