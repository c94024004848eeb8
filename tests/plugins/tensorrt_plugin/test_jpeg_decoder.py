"""The host code around nvJPEG: on a stand-in library, and against the genuine one, which opens without a GPU.

What the hardware makes of files is in tests/gpu.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_gpu import FakeCuda, fake_gpu

from yolotrt_core.errors import UsageError
from yolotrt_tensorrt import discovery
from yolotrt_tensorrt.cuda import nvjpeg
from yolotrt_tensorrt.cuda.device import Gpu, PinnedPool
from yolotrt_tensorrt.cuda.nvjpeg import NvJpeg, NvJpegError
from yolotrt_tensorrt.runtime import jpeg_decoder
from yolotrt_tensorrt.runtime.jpeg_decoder import JpegDecoder


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
    monkeypatch.setattr(jpeg_decoder.cuda_graph, "available", lambda: False)  # priorities are the real driver's
    return fake_gpu(FakeCuda())


def test_only_whole_baseline_jpegs_are_decoded(gpu: Gpu) -> None:
    library = FakeLibrary()
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(library))
    files = [file(20, 30), b"junk", file(8, 9), file(20, 30)[:-2], file(8, 8, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)]
    decoded = decoder.decode(files)
    assert [d.shape if d else None for d in decoded] == [(20, 30, 3), None, (8, 9, 3), None, None]
    for content, image in zip(files, decoded, strict=True):
        if image is not None:
            expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(image.to_host(), expected)
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
    assert jpeg_decoder.open_decoder(gpu, PinnedPool(gpu)) is None
    monkeypatch.setattr(nvjpeg, "load", lambda: None)
    assert jpeg_decoder.open_decoder(gpu, PinnedPool(gpu)) is None


def test_the_genuine_library_has_every_call_and_says_what_is_missing() -> None:
    library = nvjpeg.load()
    if library is None:
        pytest.skip("nvJPEG is not installed (extra `nvjpeg`)")
    for name in vars(FakeLibrary):
        if name.startswith("nvjpeg"):
            assert getattr(library, name)
    major = ctypes.c_int()
    assert library.nvjpegGetProperty(0, ctypes.byref(major)) == 0
    assert major.value >= 12
    if not discovery.has_driver():
        with pytest.raises(NvJpegError, match="nvjpegCreateEx: "):
            NvJpeg(library)


def test_the_newest_of_several_libraries_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name in (("nvjpeg", "libnvjpeg.so.9"), ("cu13", "libnvjpeg.so.13"), ("cu12", "libnvjpeg.so.12")):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / folder / "lib" / name).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [n for n in sys.modules if n.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    assert [p.name for p in nvjpeg._wheels()] == ["libnvjpeg.so.13", "libnvjpeg.so.12", "libnvjpeg.so.9"]


def test_a_closed_decoder_says_so(gpu: Gpu) -> None:
    library = FakeLibrary()
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(library))
    decoder.close()
    with pytest.raises(UsageError, match="the session is closed"):
        decoder.decode([file(20, 30)])
    assert library.live == 0


def test_closing_waits_for_images_under_way(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    library, decoding, go_on = FakeLibrary(), threading.Event(), threading.Event()
    whole = library.nvjpegDecodeBatched

    def slowly(*arguments: Any) -> int:
        decoding.set()
        assert go_on.wait(30)
        assert library.live == 2, "the library was taken away from under a batch"
        return whole(*arguments)

    monkeypatch.setattr(library, "nvjpegDecodeBatched", slowly)
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(library))
    with ThreadPoolExecutor(2) as pool:
        images = pool.submit(decoder.decode, [file(20, 30)])
        assert decoding.wait(30)
        closed = pool.submit(decoder.close)
        with pytest.raises(TimeoutError):
            closed.result(0.2)
        go_on.set()
        closed.result(30)
        assert [p is None for p in images.result(30)] == [False]
    assert library.live == 0


def test_a_stream_that_cannot_be_made_leaves_nothing_behind(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        """cuda-python's, on a GPU that makes no more streams."""

        CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

        def cuCtxGetStreamPriorityRange(self) -> tuple[int, int, int]:
            return 0, 0, -5

        def cuStreamCreateWithPriority(self, flags: int, priority: int) -> tuple[Any, None]:
            return Failed(2), None

    class Failed(int):
        name = "CUDA_ERROR_OUT_OF_MEMORY"

    monkeypatch.setattr(jpeg_decoder, "_urgent_stream", lambda: jpeg_decoder._UrgentStream(Driver()))
    library = FakeLibrary()
    decoder = JpegDecoder(gpu, PinnedPool(gpu), NvJpeg(library))
    assert decoder.decode([file(20, 30), file(20, 31)]) == [None, None]
    decoder.close()
    assert library.live == 0
