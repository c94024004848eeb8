"""The `Head` of a device program, compiled for the CPU: what it reads from a raw output."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.plugin.stages import DeviceProgram

# What a runner puts in front of a head, see `DeviceProgram`; float32 only.
_HARNESS = Template("""
#include <cstring>
#define __device__
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float Element;
static inline float widen(Element value) { return value; }
static inline u32 __float_as_uint(float value) { u32 bits; std::memcpy(&bits, &value, 4); return bits; }
static inline float __uint_as_float(u32 bits) { float value; std::memcpy(&value, &bits, 4); return value; }
struct Box { float x1, y1, x2, y2; };
$source
extern "C" int classes_of(const float* raw, int rows, int columns) {
  Head head = {raw, rows, columns};
  return head.classes();
}
extern "C" void read_head(const float* raw, int images, int rows, int columns, float* gates, Box* boxes,
                          float* scores) {
  Head head = {raw, rows, columns};
  for (int image = 0; image < images; image++)
    for (int row = 0; row < rows; row++) {
      float gate = *gates++ = head.objectness(image, row);
      *boxes++ = head.box(image, row);
      for (int c = 0; c < head.classes(); c++) *scores++ = head.score(image, row, gate, c);
    }
}
""")


@dataclass(frozen=True, slots=True)
class HeadValues:
    """What a head reads: objectness (B, rows), corners (B, rows, 4) and scores (B, rows, classes), float32."""

    objectness: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]


def read_head(program: DeviceProgram, output: NDArray[np.float32], folder: Path) -> HeadValues:
    """Run the program's `Head` on an output; skips the test where g++ is missing.

    Args:
        output: float32, laid out as the program says. folder: for the compiled code.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to run the device program on the CPU with")
    source, library = folder / "head.cpp", folder / "head.so"
    source.write_text(_HARNESS.substitute(source=program.source), encoding="utf-8")
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC")
    done = subprocess.run([compiler, *flags, "-o", library, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the device program does not compile: {done.stderr}"
    raw = np.ascontiguousarray(output, np.float32)
    images, rows, columns = (raw.shape[axis] for axis in ((0, 2, 1) if program.rows_last else (0, 1, 2)))
    loaded = ctypes.CDLL(str(library))
    address = ctypes.c_void_p(raw.ctypes.data)
    classes = loaded.classes_of(address, rows, columns)
    assert classes == program.classes, f"`Head.classes()` is {classes}, the program has {program.classes}"
    shapes = ((images, rows), (images, rows, 4), (images, rows, classes))
    found = [np.empty(shape, np.float32) for shape in shapes]
    loaded.read_head(address, images, rows, columns, *(ctypes.c_void_p(each.ctypes.data) for each in found))
    return HeadValues(*found)
