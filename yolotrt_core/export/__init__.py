"""Model sources, ONNX metadata and the checks of an exported ONNX."""
