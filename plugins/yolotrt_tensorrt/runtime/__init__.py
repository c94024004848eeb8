"""Sessions that run TensorRT engines on an NVIDIA GPU."""
