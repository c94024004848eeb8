"""yolotrt: from a YOLOv5 checkpoint to a TensorRT engine that can be trusted, and its runner."""
