"""CUDA kernels: compiled once per GPU, cached and loaded."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import DeviceProgram, SideCache
from yolotrt_core.types import Layout

if TYPE_CHECKING:
    from yolotrt_tensorrt.cuda.device import Gpu

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).with_name("kernels")
_ELEMENTS = {"float32": 0, "float16": 1, "bfloat16": 2}
# The CPU rounds each operation; a fused multiply-add does not.
_OPTIONS = ("-fmad=false", "--std=c++17")
_CACHE_NAME = "kernels.cubin"
_ANY_TOOLKIT = "any"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel with fixed argument types; call it to launch."""

    function: Any
    block: tuple[int, int, int]

    def __call__(self, grid: tuple[int, int, int], stream: Any, *args: int, shared_bytes: int = 0) -> None:
        self.function.prepared_async_call(grid, self.block, stream, *args, shared_size=shared_bytes)


# Argument types in pycuda's letters, and threads per block: the signatures of kernels/*.cu.
_SIGNATURES: dict[str, tuple[str, tuple[int, int, int]]] = {
    "letterbox": ("PPPii", (32, 8, 1)),
    "find_candidates": ("PPPiiPPI", (256, 1, 1)),
    "suppress": ("PPPiiPPIPPPPI", (1024, 1, 1)),
    "pad_keys": ("PII", (256, 1, 1)),
    "sort_blocks": ("PII", (1024, 1, 1)),
    "sort_step": ("PII", (1024, 1, 1)),
    "order_many": ("PPiiPIPP", (256, 1, 1)),
    "suppress_chunk": ("PPPiiPIPPPIIPPPPI", (1024, 1, 1)),
    "suppress_rest": ("PIIPPPPP", (256, 1, 1)),
    "place_masks": ("PPPPI", (256, 1, 1)),
    "draw_masks": ("PPPiiPiiPPIPI", (256, 1, 1)),
}
PREPROCESSING = ("letterbox",)
MASKS = ("place_masks", "draw_masks")
DECODING = tuple(name for name in _SIGNATURES if name not in (*PREPROCESSING, *MASKS))


def load_kernels(
    gpu: Gpu,
    dtype: str,
    side_cache: SideCache,
    program: DeviceProgram | None = None,
    layout: Layout = "nchw",
) -> dict[str, Kernel]:
    """Return the kernels for tensors of one element type, ready to launch.

    Args:
        dtype: of the tensor they write (`letterbox`) or read (a head's output). program: the head to
            decode; None loads the letterbox alone. layout: of the tensor that the letterbox writes.

    Raises:
        StageError: no compiler and no cached kernels, or a compilation error.
    """
    if dtype not in _ELEMENTS:
        raise StageError(f"kernels support tensors of {', '.join(_ELEMENTS)}, found `{dtype}`")
    masks = ("masks.cu",) if program is not None and program.prototypes else ()
    head = ("letterbox.cu",) if program is None else (program, "suppress.cu", *masks)
    parts = [f"#define ELEMENT {_ELEMENTS[dtype]}\n", _text("prelude.cuh")]
    if layout == "nhwc":
        parts.insert(0, "#define CHANNELS_LAST")
    parts += [_text(p) if isinstance(p, str) else p.source for p in head]
    binary = _binary("\n".join(parts), gpu, side_cache)
    names = PREPROCESSING if program is None else (*DECODING, *(MASKS if program.prototypes else ()))
    kernels = {}
    with gpu.current():
        try:
            module = gpu.cuda.module_from_buffer(binary)
            for name in names:
                letters, block = _SIGNATURES[name]
                function = module.get_function(name)
                function.prepare(letters)
                kernels[name] = Kernel(function, block)
        except gpu.cuda.Error as err:
            raise StageError(f"the driver cannot load the kernels for {gpu.name}: {err}") from err
    return kernels


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _binary(source: str, gpu: Gpu, side_cache: SideCache) -> bytes:
    """Return machine code from the side cache, whichever toolkit compiled it, or compile it."""
    arch = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
    digest = hashlib.sha256("\0".join((source, *_OPTIONS)).encode()).hexdigest()
    compiler = _compiler()
    toolkit = compiler[0] if compiler else _ANY_TOOLKIT
    material = {"source_sha256": digest, "arch": arch, "toolkit": toolkit}
    kept = side_cache.load(_CACHE_NAME, material)
    if kept:
        return kept
    if compiler is None:
        raise StageError(
            f"the GPU kernels are not compiled yet for {gpu.name} ({arch}), and NVRTC and nvcc are missing",
            hint="pip install 'yolotrt-core[gpu]' nvidia-cuda-nvrtc, or install the CUDA toolkit",
        )
    _log.info("compiling GPU kernels for %s with %s", arch, toolkit)
    binary = compiler[1](source, arch)
    side_cache.save(_CACHE_NAME, material, binary)
    side_cache.save(_CACHE_NAME, {**material, "toolkit": _ANY_TOOLKIT}, binary)
    return binary


def _compiler() -> tuple[str, Callable[[str, str], bytes]] | None:
    """Return name and version of the available compiler, and a function from source and arch to a cubin."""
    try:
        from cuda.bindings import nvrtc

        error, major, minor = nvrtc.nvrtcVersion()
        if int(error) == 0:
            return f"nvrtc {major}.{minor}", _compile_nvrtc
    except (ImportError, RuntimeError, OSError) as err:  # cuda-python raises RuntimeError for a missing library
        _log.debug("no NVRTC: %s", err)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    import subprocess

    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return f"nvcc {version.split('release ')[-1].split(',')[0]}", _compile_nvcc


def _compile_nvrtc(source: str, arch: str) -> bytes:
    from cuda.bindings import nvrtc

    def checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise StageError(f"NVRTC failed with {result[0].name}")
        return result[1] if len(result) == 2 else None

    program = checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    try:
        options = [f"-arch={arch}".encode(), *(o.encode() for o in _OPTIONS)]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(error):
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
            checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise StageError(f"the GPU kernels do not compile: {_first_error(log.decode(errors='replace'))}")
        binary = b" " * int(checked(nvrtc.nvrtcGetCUBINSize(program)))
        checked(nvrtc.nvrtcGetCUBIN(program, binary))
        return binary
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _compile_nvcc(source: str, arch: str) -> bytes:
    import pycuda.driver
    from pycuda.compiler import compile as compile_cuda

    try:
        binary: bytes = compile_cuda(source, options=list(_OPTIONS), no_extern_c=True, arch=arch, cache_dir=False)
    except pycuda.driver.CompileError as err:
        raise StageError(f"the GPU kernels do not compile: {_first_error(str(err))}") from err
    return binary


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if "error" in line]
    return lines[0] if lines else log.strip()[:200]
