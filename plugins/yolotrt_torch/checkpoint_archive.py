"""Reader of PyTorch's two checkpoint containers and their tensors, without PyTorch.

Zip form (torch 1.6 and later): `NAME/data.pkl` and one entry `NAME/data/KEY` per storage. PyTorch writes them
uncompressed and aligned, and also reads archives that were unpacked and compressed again with Deflate.
Legacy form: four pickles (magic number, version, byte order, the object), the list of storage keys,
then each storage as its length in 8 bytes and its data.
Source: torch 2.13, torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.errors import UsageError
from yolotrt_torch.pickle_reader import CorruptedPickle, Storage, Stub, TensorRef, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_SIDE = 1 << 16  # of an empty tensor, whose other axes NumPy still multiplies
MAX_PICKLE_BYTES = 64 << 20  # the largest official checkpoint has 0.5 MB
# Decompressed size: weights shrink by a tenth, pruned ones with their masks to a third, zeros to a thousandth.
MAX_EXPANSION = 8
FREE_BYTES = 64 << 20  # which a file of any size may have decompressed
FREE_PICKLE_BYTES = 1 << 20  # pickles shrink to a third
_DTYPES: dict[str, np.dtype[Any]] = {
    "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "BFloat16Storage": np.dtype("<u2"),  # not in NumPy; widened on reading
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
AN_ONNX = "an ONNX file"
_MAX_PICKLES = 8  # PyTorch's legacy form has five, its zip archives one
_HINT = "pass the `.pt` file that YOLOv5's training wrote"
_SCRIPT_HINT = (
    "pass the `.pt` file that it was made from; or export that to ONNX in the environment that has the model's code "
    "(`python export.py --weights best.pt --include onnx`) and pass `--weights best.onnx`"
)


class Archive:
    """An opened checkpoint: its object tree, and the data of each tensor on demand."""

    def __init__(self, root: Any, storages: _Storages, file_bytes: int) -> None:
        self.root = root
        self._storages = storages
        self._left = 2 * file_bytes  # tensors that share storage could otherwise exhaust the memory

    def array(self, tensor: TensorRef) -> NDArray[Any]:
        """Read one tensor.

        Returns:
            A new array of the tensor's shape, little-endian; bfloat16 is widened to float32.

        Raises:
            UsageError: it exceeds its storage, repeats elements, or the storage is corrupted.
        """
        dtype = _DTYPES.get(tensor.storage.kind)
        if dtype is None:
            raise UsageError(f"a tensor of the checkpoint has the unknown type `{tensor.storage.kind}`")
        count = math.prod(tensor.shape)
        last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
        beyond = last >= tensor.storage.count if count else max(tensor.shape) > MAX_SIDE
        if count > tensor.storage.count or beyond:
            raise UsageError("a tensor of the checkpoint exceeds its storage")
        self._left -= count * dtype.itemsize
        if self._left < 0:
            raise UsageError("the tensors of the checkpoint are larger than the file")
        if count == 0:
            return np.zeros(tensor.shape, dtype)
        data = self._storages.read(tensor.storage.key, tensor.storage.count * dtype.itemsize)
        flat = np.frombuffer(data, dtype)
        # The stride of an axis of length 1 is arbitrary.
        steps = zip(tensor.shape, tensor.stride, strict=True)
        strides = [step * dtype.itemsize if size > 1 else 0 for size, step in steps]
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        if tensor.storage.kind == "BFloat16Storage":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return np.array(view)


class _Storages(Protocol):
    """Raw bytes of each storage by key."""

    def read(self, key: str, size: int) -> bytes: ...


class _ZipStorages:
    """Entries of a zip archive, of which at most `limit` bytes are decompressed in all."""

    def __init__(self, file: zipfile.ZipFile, prefix: str, limit: int) -> None:
        self.file, self.prefix, self.left = file, prefix, limit
        self.last: tuple[str, bytes] = ("", b"")

    def read(self, key: str, size: int) -> bytes:
        if key == self.last[0] and len(self.last[1]) == size:  # tensors that share a storage follow each other
            return self.last[1]
        self.left -= size
        if self.left < 0:
            raise UsageError(
                "the storages of the checkpoint are much larger than the file when decompressed",
                hint="save it again with `torch.save`, which does not compress",
            )
        self.last = (key, _entry(self.file, f"{self.prefix}data/{key}", exactly=size))
        return self.last[1]


class _LegacyStorages:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.places: dict[str, tuple[int, int]] = {}

    def read(self, key: str, size: int) -> bytes:
        start, found = self.places.get(key, (0, -1))
        if found != size:
            raise UsageError(f"storage `{key[:40]}` of the checkpoint is missing or has another size")
        return self.data[start : start + size]


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a checkpoint of either format, without executing its code.

    Raises:
        UsageError: missing, not a checkpoint (names the detected format), corrupted, or with names that are not
            allowed.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if not head:
                raise UsageError(f"expected a YOLOv5 checkpoint, found an empty file: `{path}`", hint=_HINT)
            if head.startswith(b"PK"):
                with _convert_errors(path), _zip_file(file) as archive:
                    yield _open_zip(archive, path.stat().st_size)
                return
            file.seek(0)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if head[0] != 0x80:
                    # A text pickle can contain code too: let the reader name what it refuses.
                    _refuse(path, head, data)
                with _convert_errors(path):
                    storages = _LegacyStorages(data)
                    yield Archive(_open_legacy(data, storages.places), storages, len(data))
    except OSError as err:
        raise UsageError(f"cannot read `{path}`: {err.strerror or err}") from err


def open_pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles of a file, each to be read or skipped to its end: of a zip archive one, of others all in a row.

    Ends at data that follows the pickles; the reader of a pickle has to find out.

    Raises:
        UsageError: as `open_archive`.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                with _convert_errors(path), _zip_file(file) as archive:
                    names = [n for n in archive.namelist() if n.rpartition("/")[2].endswith(".pkl")][:_MAX_PICKLES]
                    for name in names:
                        yield io.BytesIO(_entry(archive, name, limit=MAX_PICKLE_BYTES))
                return
            file.seek(0)
            for _ in range(_MAX_PICKLES):
                yield file
    except OSError as err:
        raise UsageError(f"cannot read `{path}`: {err.strerror or err}") from err


@contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Convert the standard library's exceptions on corrupted containers to one UsageError."""
    try:
        yield
    except CorruptedPickle as err:
        raise UsageError(f"expected a YOLOv5 checkpoint, but `{path}` cannot be read: {err}", hint=_HINT) from err
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError) as err:
        raise UsageError(f"`{path}` is truncated or corrupted: {err}", hint="copy or download it again") from err


def _zip_file(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (ValueError, OSError, OverflowError, struct.error) as err:  # from a corrupted directory
        raise zipfile.BadZipFile(f"its directory cannot be read ({type(err).__name__})") from err


def _open_zip(file: zipfile.ZipFile, size: int) -> Archive:
    names = file.namelist()
    pickles = [n for n in names if n.count("/") <= 1 and n.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UsageError("expected a YOLOv5 checkpoint, found a zip archive without `data.pkl`", hint=_HINT)
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in names:
        raise UsageError(
            "expected a YOLOv5 checkpoint, found a TorchScript archive, which has code in place of layers",
            hint=_SCRIPT_HINT,
        )
    if prefix + "byteorder" in names and _entry(file, prefix + "byteorder", limit=16).strip() != b"little":
        raise UsageError("the checkpoint was saved on a big-endian machine, which is not supported")
    limit = min(MAX_PICKLE_BYTES, MAX_EXPANSION * file.getinfo(pickles[0]).compress_size + FREE_PICKLE_BYTES)
    root = read_pickle(io.BytesIO(_entry(file, pickles[0], limit=limit)))
    # The directory's sizes are the file's claim; entries of other sizes are refused when they are read.
    stated = sum(info.file_size for info in file.infolist() if info.compress_type == zipfile.ZIP_DEFLATED)
    whole = size + min(stated, size * MAX_EXPANSION + FREE_BYTES)
    return Archive(root, _ZipStorages(file, prefix, 2 * whole), whole)


def _entry(file: zipfile.ZipFile, name: str, *, exactly: int | None = None, limit: int | None = None) -> bytes:
    """Read one entry of known size, stored or compressed as PyTorch reads it."""
    try:
        info = file.getinfo(name)
        wrong = info.file_size != exactly if exactly is not None else info.file_size > (limit or 0)
        is_stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if wrong or not (is_stored or info.compress_type == zipfile.ZIP_DEFLATED):
            raise UsageError(f"entry `{name[:60]}` of the checkpoint has an invalid size or compression")
        return file.read(info)
    except KeyError as err:
        raise UsageError(f"entry `{name[:60]}` of the checkpoint is missing", hint="copy or download it again") from err
    except (ValueError, RuntimeError, OverflowError, OSError, struct.error) as err:  # encrypted, outside the file ...
        raise zipfile.BadZipFile(f"entry `{name[:60]}` cannot be read ({type(err).__name__})") from err


def _open_legacy(data: mmap.mmap, places: dict[str, tuple[int, int]]) -> Any:
    """Read the four pickles and find the storages."""
    stream: Any = data  # a memory map reads and seeks like a file
    if read_pickle(stream) != LEGACY_MAGIC:
        raise UsageError("expected a YOLOv5 checkpoint, found a pickle not written by PyTorch", hint=_HINT)
    version, system, root, keys = (read_pickle(stream) for _ in range(4))
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UsageError("the checkpoint's legacy format has an unknown version or byte order")
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise CorruptedPickle("the list of storages is corrupted")
    kinds = _storage_sizes(root)
    position, end = data.tell(), len(data)
    for key in keys:
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        size = count * kinds.get(key, 0)
        if key not in kinds or count < 0 or position + 8 + size > end:
            raise CorruptedPickle("the file is truncated within its tensors")
        places[key] = (position + 8, size)
        position += 8 + size
    return root


def _storage_sizes(root: Any) -> dict[str, int]:
    """Return the item size of every storage in the tree."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, TensorRef):
            item = item.storage
        if isinstance(item, Storage):
            dtype = _DTYPES.get(item.kind)
            found[item.key] = dtype.itemsize if dtype else 0
        elif isinstance(item, (dict, list, tuple, set, Stub)) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, dict):
                waiting.extend(item.values())
            elif isinstance(item, Stub):
                waiting.extend((item.args, item.state))
            else:
                waiting.extend(item)
    return found


def _refuse(path: Path, head: bytes, data: mmap.mmap) -> None:
    """Refuse a file that does not start like a checkpoint, naming its format."""
    start = data[: 1 << 20]
    try:
        for _ in pickletools.genops(start):  # raises unless all of it is valid instructions
            pass
        read_pickle(io.BytesIO(start))
    except (ValueError, OverflowError, CorruptedPickle) as err:
        found = describe(head, start[:4096])
        hint = "pass the `.pt` file that it was exported from" if found == AN_ONNX else _HINT
        raise UsageError(f"expected a YOLOv5 checkpoint, found {found}: `{path}`", hint=hint) from err
    raise UsageError(f"expected a YOLOv5 checkpoint, found a pickle not written by PyTorch: `{path}`", hint=_HINT)


def describe(head: bytes, start: bytes) -> str:
    """Return the format of a file by its first bytes, for an error message."""
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file, e.g. Keras weights"
    # A ModelProto: its first field, the IR version, is a small number; the tag of a later field follows.
    if re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3aB]", head):
        return AN_ONNX
    text = start.decode("utf-8", "ignore")
    if text and len(text.encode()) > len(start) - 4 and all(c.isprintable() or c in "\r\n\t" for c in text):
        return "a text file"
    return "a file of another format"
