"""JPEG files decoded on the GPU by nvImageCodec, where it is installed (extra `nvjpeg`).

Its pixels are not quite OpenCV's, see README.md. What it is not sure to decode as OpenCV would (another format, a
turned or broken picture) is left to OpenCV.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.jpeg import upright_size
from yolotrt_tensorrt.gpu import Gpu, PinnedPool

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# Never destroyed, but lent again: an image frees its memory on the stream it was decoded on.
_streams: defaultdict[Gpu, deque[Any]] = defaultdict(deque)


class DevicePicture:
    """A BGR picture in device memory, rows without gaps; its memory is used again once nobody holds it.

    Attributes:
        shape: (H, W, 3). address: of its first pixel on the device.
    """

    def __init__(self, decoder: JpegDecoder, image: Any, shape: tuple[int, int, int], address: int) -> None:
        self._decoder, self._image = decoder, image
        self.shape, self.address = shape, address

    def to_host(self) -> NDArray[np.uint8]:
        """Return its pixels in host memory."""
        return self._decoder.download(self)

    def __del__(self) -> None:
        self._decoder.take_back(self._image)


@dataclass(slots=True)
class _Worker:
    """What one thread decodes with.

    Attributes:
        staging: page-locked memory for the files. From other memory the driver copies them itself, at the caller's
            cost and for one caller at a time.
    """

    decoder: Any
    stream: Any
    staging: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def stage(self, files: Sequence[bytes], pool: PinnedPool) -> list[NDArray[np.uint8]]:
        """Copy files into `staging`, which nothing may be reading, and return where each lies."""
        total = sum(map(len, files))
        if len(self.staging) < total:
            self.staging = pool.array((2 * total,))
        staged, begin = [], 0
        for file in files:
            target = self.staging[begin : begin + len(file)]
            target[:] = np.frombuffer(file, np.uint8)
            staged.append(target)
            begin += len(file)
        return staged


class JpegDecoder:
    """Decodes batches of JPEG files; any number of threads may call it, each has a decoder of its own meanwhile."""

    def __init__(self, gpu: Gpu, pool: PinnedPool, codec: Any) -> None:
        self._gpu, self._pool, self._codec = gpu, pool, codec
        self._parameters = codec.DecodeParams(sample_format=codec.SampleFormat.I_BGR)
        self._idle: deque[_Worker] = deque()
        self._images: deque[Any] = deque()
        self._closed = False
        with gpu.current():
            self._idle.append(self._new_worker())

    def decode(self, files: Sequence[bytes]) -> list[DevicePicture | None]:
        """Decode files.

        Args:
            files: their contents.

        Returns:
            For each its picture, or None where OpenCV should have a try.
        """
        sizes = [upright_size(memoryview(f)) for f in files]
        chosen = [i for i, size in enumerate(sizes) if size is not None]
        decoded: list[DevicePicture | None] = [None] * len(files)
        with self._gpu.current():
            try:
                images = self._decode([files[i] for i in chosen]) if chosen else []
            except RuntimeError as err:  # what pybind11 makes of nvImageCodec's errors; OpenCV says what is wrong
                _log.debug("nvImageCodec failed on %d pictures: %s", len(chosen), err)
                # One file it cannot bear may be the reason.
                return [self.decode([f])[0] for f in files] if len(chosen) > 1 else decoded
        for index, image in zip(chosen, images, strict=True):
            size = sizes[index]
            if image is None or size is None:
                continue
            decoded[index] = self._picture(image, size)
        return decoded

    def _decode(self, files: list[bytes]) -> list[Any]:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._new_worker()
        try:
            reused = self._reusable(len(files))
            streams = [self._codec.CodeStream(f) for f in worker.stage(files, self._pool)]
            images: list[Any] = worker.decoder.decode(
                streams, images=reused, params=self._parameters, cuda_stream=worker.stream.handle
            )
            return images
        finally:
            worker.stream.synchronize()  # also after an error: the staging memory is used again
            self._idle.append(worker)

    def _reusable(self, count: int) -> list[Any] | None:
        """Return as many images to decode into: allocating on the device stops all that runs there."""
        taken: list[Any] = []
        try:
            while len(taken) < count:
                taken.append(self._images.popleft())
        except IndexError:
            self._images.extend(taken)
            return None
        return taken

    def _picture(self, image: Any, size: tuple[int, int]) -> DevicePicture | None:
        seen = image.__cuda_array_interface__
        shape = (*size, 3)
        packed = seen.get("strides") in (None, (3 * size[1], 3, 1))
        if tuple(seen["shape"]) != shape or seen["typestr"] != "|u1" or not packed:
            return None
        return DevicePicture(self, image, shape, int(seen["data"][0]))

    def _new_worker(self) -> _Worker:
        kind = self._codec.BackendKind
        backends = [self._codec.Backend(k) for k in (kind.HW_GPU_ONLY, kind.GPU_ONLY, kind.HYBRID_CPU_GPU)]
        # OpenCV's libjpeg interpolates colours too.
        decoder = self._codec.Decoder(
            device_id=self._gpu.ordinal, max_num_cpu_threads=2, backends=backends, options=":fancy_upsampling=1"
        )
        free = _streams[self._gpu]
        return _Worker(decoder, free.pop() if free else self._gpu.stream())

    def download(self, picture: DevicePicture) -> NDArray[np.uint8]:
        """Return a picture's pixels in page-locked memory."""
        host = self._pool.array(picture.shape)
        with self._gpu.current():
            self._gpu.cuda.memcpy_dtoh(host, picture.address)
        return host

    def take_back(self, image: Any) -> None:
        """Keep an image's memory for the next one."""
        if not self._closed:
            self._images.append(image)

    def close(self) -> None:
        """Free decoders and memory that nobody holds."""
        self._closed = True
        with self._gpu.current():
            self._images.clear()
            while self._idle:
                _streams[self._gpu].append(self._idle.pop().stream)


def open_decoder(gpu: Gpu, pool: PinnedPool) -> JpegDecoder | None:
    """Return a decoder, or None where nvImageCodec is not installed or does not run."""
    try:
        found = importlib.util.find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:
        found = None
    if found is None or not found.submodule_search_locations:
        return None
    try:
        with _jpeg_alone(Path(found.submodule_search_locations[0])):
            from nvidia import nvimgcodec

            return JpegDecoder(gpu, pool, nvimgcodec)
    except (ImportError, RuntimeError) as err:
        _log.warning("JPEG files are decoded on the CPU: nvImageCodec does not run here: %s", err)
        return None


@contextmanager
def _jpeg_alone(package: Path) -> Iterator[None]:
    """Let nvImageCodec load its JPEG decoder only: others write to standard error if their libraries are missing."""
    names = {"NVIMGCODEC_EXTENSIONS_PATH", "PYNVIMGCODEC_VERBOSITY"} - os.environ.keys()
    with tempfile.TemporaryDirectory(prefix="yolotrt-") as folder:
        for library in (package / "extensions").glob("libnvjpeg_ext.so*"):
            (Path(folder) / library.name).symlink_to(library)
        wanted = {"NVIMGCODEC_EXTENSIONS_PATH": folder, "PYNVIMGCODEC_VERBOSITY": "0"}
        os.environ.update({name: wanted[name] for name in names})
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
