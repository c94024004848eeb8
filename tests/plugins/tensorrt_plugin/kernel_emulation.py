"""The GPU kernels compiled for the CPU, see emulation.cpp."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolotrt_core.types import Layout
from yolotrt_tensorrt.cuda import kernels_loader

ROOT = Path(kernels_loader.__file__).parent
HEAD = ROOT.parents[1] / "yolotrt_yolov5" / "head.cu"
KERNELS = ROOT / "kernels"
BEFORE, AFTER = ("prelude.cuh", "letterbox.cu"), ("suppress.cu",)
ELEMENTS = {"float32": 0, "float16": 1}
_TYPES = {"P": ctypes.c_void_p, "i": ctypes.c_int, "I": ctypes.c_uint}
_one_at_a_time = threading.Lock()


class Emulated:
    """Kernels for tensors of one dtype, launched as on a GPU."""

    def __init__(self, library: ctypes.CDLL, dtype: str) -> None:
        self.library, self.dtype = library, np.dtype(dtype)

    def launch(self, name: str, grid: tuple[int, int, int], *args: Any) -> None:
        """Run a kernel; arrays stand for their addresses."""
        letters, _ = kernels_loader._SIGNATURES[name]
        values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in args]
        typed = [_TYPES[letter](value) for letter, value in zip(letters, values, strict=True)]
        with _one_at_a_time:
            self.library[f"run_{name}"]((ctypes.c_uint * 3)(*grid), *typed)


def compiled(dtype: str, folder: Path, layout: Layout = "nchw", coefficients: int = 0, head: Path = HEAD) -> Emulated:
    """Compile the kernels with g++, or skip the test.

    Args:
        coefficients: of each mask of a segmentation head. head: without masks, another than YOLOv5's.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    masks = ("masks.cu",) if head == HEAD else ()
    sources = [*(KERNELS / name for name in BEFORE), head, *(KERNELS / name for name in (*AFTER, *masks))]
    text = "\n".join(source.read_text() for source in sources)
    defined = (
        f"#define ELEMENT {ELEMENTS[dtype]}\n#define COEFFICIENTS {coefficients}\n"
        + "#define CHANNELS_LAST\n" * (layout == "nhwc")
        + "#define NO_MASKS\n" * (not masks)
    )
    (folder / "kernels.cu").write_text(defined + text)
    (folder / "emulation.cpp").write_text(Path(__file__).with_name("emulation.cpp").read_text())
    command = [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-fpermissive", "-w", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", folder / "kernels.so", folder / "emulation.cpp"], check=True)
    return Emulated(ctypes.CDLL(str(folder / "kernels.so")), dtype)
