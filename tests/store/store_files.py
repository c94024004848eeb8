"""The files of a store, as tests look at them and damage them."""

from __future__ import annotations

from pathlib import Path

from yolotrt_core.store.store import Store


def blob_file(store: Store, sha256: str) -> Path:
    """Where a stored file lies."""
    cache = store.reading()
    assert cache is not None
    with cache.read(f"blob/{sha256}") as file:
        return Path(file.name)


def flip_byte(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
