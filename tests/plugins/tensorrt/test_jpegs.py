"""The host code around nvJPEG: on a stand-in library, and against the genuine one, which opens without a GPU.

What the hardware makes of files is in tests/gpu.
"""

from __future__ import annotations

import ctypes
from typing import Any

import cv2
import numpy as np
import pytest
from fake_gpu import FakeCuda, fake_gpu

from yolotrt_tensorrt import jpegs, nvjpeg
from yolotrt_tensorrt.gpu import Gpu, PinnedPool
from yolotrt_tensorrt.jpegs import JpegDecoder
from yolotrt_tensorrt.nvjpeg import NvJpeg, NvJpegError


def file(height: int, width: int, *flags: int) -> bytes:
    good, data = cv2.imencode(".jpg", np.full((height, width, 3), height, np.uint8), list(flags))
    assert good
    return data.tobytes()


class FakeLibrary:
    """Decodes with OpenCV into the memory it is given; `refused` makes a batch fail.

    Attributes:
        batches: sizes of the batches it was asked for. live: states and decoders not freed.
    """

    def __init__(self, refused: bytes = b"", hardware: bool = True) -> None:
        self.refused, self.hardware = refused, hardware
        self.batches: list[int] = []
        self.live = 0
        self._batch = 0

    def nvjpegCreateEx(self, backend: int, device: None, pinned: None, flags: int, handle: Any) -> int:
        assert (backend, device, pinned) == (3, None, None)
        self.live += self.hardware
        return 0 if self.hardware else 7

    def nvjpegJpegStateCreate(self, handle: Any, state: Any) -> int:
        self.live += 1
        return 0

    def nvjpegDecodeBatchedInitialize(self, handle: Any, state: Any, batch: int, threads: int, form: int) -> int:
        assert form == 6
        self._batch = batch
        return 0

    def nvjpegDecodeBatched(self, handle: Any, state: Any, data: Any, lengths: Any, images: Any, stream: Any) -> int:
        assert len(data) == len(lengths) == len(images) == self._batch
        self.batches.append(len(data))
        contents = [ctypes.string_at(address, length) for address, length in zip(data, lengths, strict=True)]
        if self.refused in contents:
            return 4
        for content, image in zip(contents, images, strict=True):
            array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            assert image.pitch[0] == array.strides[0]
            ctypes.memmove(image.channel[0], array.ctypes.data, array.nbytes)
        return 0

    def nvjpegJpegStateDestroy(self, state: Any) -> int:
        self.live -= 1
        return 0

    def nvjpegDestroy(self, handle: Any) -> int:
        self.live -= 1
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(jpegs.graphs, "available", lambda: False)  # priorities are the real driver's
    return fake_gpu(FakeCuda())


def test_only_whole_baseline_jpegs_are_decoded(gpu: Gpu) -> None:
    library = FakeLibrary()
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(library))
    files = [file(20, 30), b"junk", file(8, 9), file(20, 30)[:-2], file(8, 8, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)]
    decoded = decoder.decode(files)
    assert [d.shape if d else None for d in decoded] == [(20, 30, 3), None, (8, 9, 3), None, None]
    for content, picture in zip(files, decoded, strict=True):
        if picture is not None:
            expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(picture.to_host(), expected)
    assert decoder.decode([b"junk"]) == [None]
    assert library.batches == [2]
    decoder.close()
    assert library.live == 0


def test_memory_is_used_again_once_nobody_holds_it(gpu: Gpu) -> None:
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(FakeLibrary()))
    first, second = decoder.decode([file(20, 30), file(20, 31)])
    assert first is not None
    assert second is not None
    assert first.address != second.address
    address, held = first.address, gpu.cuda.live
    del first
    (third,) = decoder.decode([file(40, 50)])
    assert third is not None
    assert third.address == address
    assert gpu.cuda.live == held
    decoder.close()
    del second, third
    assert gpu.cuda.live == 0


def test_one_file_that_fails_leaves_the_others(gpu: Gpu) -> None:
    library = FakeLibrary(refused=file(16, 16))
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(library))
    assert [d is None for d in decoder.decode([file(8, 8), library.refused, file(9, 9)])] == [False, True, False]
    assert library.batches == [3, 1, 1, 1]
    decoder.close()
    assert library.live == 0


def test_a_full_gpu_leaves_files_to_opencv(gpu: Gpu) -> None:
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(FakeLibrary()))
    gpu.cuda.limit = gpu.cuda.live
    assert decoder.decode([file(20, 30)]) == [None]
    decoder.close()


def test_a_gpu_without_the_hardware(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "load", lambda: FakeLibrary(hardware=False))
    assert jpegs.open_decoder(gpu, PinnedPool(gpu)) is None
    monkeypatch.setattr(nvjpeg, "load", lambda: None)
    assert jpegs.open_decoder(gpu, PinnedPool(gpu)) is None


def test_the_genuine_library_has_every_call_and_says_what_is_missing() -> None:
    pytest.importorskip("nvidia", reason="needs the package `nvidia-nvjpeg` (extra `nvjpeg`)")
    library = nvjpeg.load()
    assert library is not None
    for name in vars(FakeLibrary):
        if name.startswith("nvjpeg"):
            assert getattr(library, name)
    major = ctypes.c_int()
    assert library.nvjpegGetProperty(0, ctypes.byref(major)) == 0
    assert major.value >= 12
    try:
        NvJpeg(library).close()
    except NvJpegError as err:
        assert "nvjpegCreateEx: " in str(err)
