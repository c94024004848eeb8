"""Building of TensorRT engines."""
