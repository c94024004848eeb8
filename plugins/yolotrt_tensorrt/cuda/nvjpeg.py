"""ctypes binding of nvJPEG's batch decoding on the GPU's JPEG hardware.

Source: nvjpeg.h of nvJPEG 13.3; the calls are the same from 11 on.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE
_BGR = 6  # NVJPEG_OUTPUT_BGRI
_INTERPOLATE = 1 << 5  # NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION: chroma upsampling of libjpeg, and so of OpenCV
_STATUS = {
    1: "not initialised", 2: "invalid parameter", 3: "bad JPEG", 4: "JPEG not supported", 5: "allocator failure",
    6: "execution failed", 7: "architecture mismatch", 8: "internal error", 9: "implementation not supported",
    10: "incomplete bitstream",
}  # fmt: skip
# Newest first; for a system's CUDA toolkit.
_SYSTEM_NAMES = ("libnvjpeg.so.13", "libnvjpeg.so.12")


class NvJpegError(Exception):
    """A failed nvJPEG call."""


@dataclass(frozen=True, slots=True)
class Target:
    """Destination of an image: device address of its first pixel, and bytes per row."""

    address: int
    pitch: int


class _Image(ctypes.Structure):
    """nvjpegImage_t."""

    _fields_ = (("channel", ctypes.c_void_p * 4), ("pitch", ctypes.c_size_t * 4))


class NvJpeg:
    """A decoder on the hardware of the GPU whose context is current; any number of threads may share it."""

    def __init__(self, library: Any) -> None:
        """Open the decoder.

        Args:
            library: `libnvjpeg`, loaded by ctypes.

        Raises:
            NvJpegError: the GPU has no JPEG hardware.
        """
        self._library = library
        self._handle = ctypes.c_void_p()
        self._call("nvjpegCreateEx", _HARDWARE, None, None, _INTERPOLATE, ctypes.byref(self._handle))

    def new_state(self) -> State:
        """Create a decoder state, for one thread at a time."""
        state = ctypes.c_void_p()
        self._call("nvjpegJpegStateCreate", self._handle, ctypes.byref(state))
        return State(state)

    def decode(self, state: State, files: Sequence[tuple[int, int]], targets: Sequence[Target], stream: int) -> None:
        """Enqueue the decoding of a batch on a stream.

        Args:
            files: host address and size of each JPEG file, which must stay valid until the stream is done.
            targets: one per file, for interleaved BGR. stream: its handle.

        Raises:
            NvJpegError: the hardware does not support a file of the batch.
        """
        count = len(files)
        if state.batch != count:
            self._call("nvjpegDecodeBatchedInitialize", self._handle, state.handle, count, 1, _BGR)
            state.batch = count
        data, lengths = (ctypes.c_void_p * count)(), (ctypes.c_size_t * count)()
        images = (_Image * count)()
        for index, ((address, length), target) in enumerate(zip(files, targets, strict=True)):
            data[index], lengths[index] = address, length
            images[index].channel[0], images[index].pitch[0] = target.address, target.pitch
        self._call(
            "nvjpegDecodeBatched", self._handle, state.handle, data, lengths, images, ctypes.c_void_p(stream)
        )  # fmt: skip

    def free_state(self, state: State) -> None:
        """Free a state whose work has ended."""
        self._library.nvjpegJpegStateDestroy(state.handle)

    def close(self) -> None:
        """Free the decoder, after its states."""
        self._library.nvjpegDestroy(self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise NvJpegError(f"{name}: {_STATUS.get(status, f'status {status}')}")


@dataclass(slots=True)
class State:
    """nvjpegJpegState_t, and the size of the batches it is set up for."""

    handle: ctypes.c_void_p
    batch: int = 0


def load() -> Any:
    """Return nvJPEG, or None where it is not installed."""
    for name in (*map(str, _wheels()), *_SYSTEM_NAMES):
        try:
            library = ctypes.CDLL(name)
        except OSError as err:
            _log.debug("nvJPEG: %s", err)
        else:
            return library
    return None


def _wheels() -> Iterator[Path]:
    """Yield the libraries of the packages `nvidia-nvjpeg` and `nvidia-nvjpeg-cu12`, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = [library for folder in folders for library in Path(folder).glob("*/lib/libnvjpeg.so.*")]
    yield from sorted(found, key=lambda library: [int(n) for n in re.findall(r"\d+", library.name)], reverse=True)
