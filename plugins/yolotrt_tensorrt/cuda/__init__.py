"""The CUDA driver, devices, graphs, kernels and nvJPEG."""
