"""The host code around nvImageCodec, on stand-ins: which files it gets, memory used again, failures. See tests/gpu."""

from __future__ import annotations

import types
from typing import Any

import cv2
import numpy as np
from fake_gpu import FakeCuda, fake_gpu

from yolotrt_tensorrt.gpu import PinnedPool
from yolotrt_tensorrt.jpegs import JpegDecoder


def file(height: int, width: int) -> bytes:
    good, data = cv2.imencode(".jpg", np.full((height, width, 3), height, np.uint8))
    assert good
    return data.tobytes()


class FakeCodec(types.SimpleNamespace):
    """Decodes with OpenCV into host memory; `refused` makes a batch fail."""

    refused = b""

    def __init__(self) -> None:
        kinds = types.SimpleNamespace(HW_GPU_ONLY=1, GPU_ONLY=2, HYBRID_CPU_GPU=3)
        super().__init__(BackendKind=kinds, SampleFormat=types.SimpleNamespace(I_BGR=1), Backend=lambda kind: kind)
        self.reused: list[bool] = []

    def DecodeParams(self, **_: Any) -> None: ...

    def CodeStream(self, data: bytes) -> bytes:
        return data

    def Decoder(self, **_: Any) -> FakeCodec:
        return self

    def decode(self, staged: list[Any], images: Any, **_: Any) -> list[Any]:
        streams = [bytes(s) for s in staged]
        self.reused.append(images is not None)
        if self.refused in streams:
            raise RuntimeError("cannot")
        decoded = []
        for stream in streams:
            array = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR)
            seen = {"shape": array.shape, "typestr": "|u1", "data": (array.ctypes.data, False), "strides": None}
            decoded.append(types.SimpleNamespace(array=array, __cuda_array_interface__=seen))
        return decoded


def test_only_whole_jpegs_are_decoded_and_memory_is_used_again() -> None:
    gpu, codec = fake_gpu(FakeCuda()), FakeCodec()
    decoder = JpegDecoder(gpu, PinnedPool(gpu), codec)
    files = [file(20, 30), b"junk", file(8, 9), file(20, 30)[:-2]]
    decoded = decoder.decode(files)
    assert [d.shape if d else None for d in decoded] == [(20, 30, 3), None, (8, 9, 3), None]
    del decoded
    decoder.decode(files[:1])
    assert codec.reused == [False, True]
    decoder.close()


def test_one_file_that_fails_leaves_the_others() -> None:
    gpu, codec = fake_gpu(FakeCuda()), FakeCodec()
    codec.refused = file(16, 16)
    decoder = JpegDecoder(gpu, PinnedPool(gpu), codec)
    assert [d is None for d in decoder.decode([file(8, 8), codec.refused, file(9, 9)])] == [False, True, False]
    decoder.close()
