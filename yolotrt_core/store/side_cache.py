"""Files that stages keep between runs to be faster; losing one costs time and nothing else."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from yolotrt_core.errors import ArtifactError
from yolotrt_core.store.action import canonical_json
from yolotrt_core.store.database import Database
from yolotrt_core.store.errors import ReadOnlyStoreError, reporting
from yolotrt_core.store.names import SIDE

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class StoredSideCache:
    """A `SideCache` in the artifact store; each file carries its digest in front."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        """Return what was saved last for this name and material, or None; damaged bytes count as none."""
        try:
            with reporting(self._database.root):
                cache = self._database.reading()
                data: bytes | None = cache.get(side_key(name, material)) if cache is not None else None
        except ArtifactError as err:
            log.warning("cannot read the kept file `%s`: %s", name, err)
            return None
        if data is None:
            return None
        if not is_side_intact(data):
            log.warning("the kept file `%s` is damaged and is not used", name)
            return None
        return data[_DIGEST_BYTES:]

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        """Keep `data`, replacing what was there; a store that cannot be written is only warned about."""
        try:
            with self._database.writing() as cache:
                try:
                    cache.set(side_key(name, material), hashlib.sha256(data).digest() + data)
                except BaseException:  # raised again: a half-written file must not stay, whatever ended the writing
                    cache.close()
                    cache.sweep()
                    raise
        except ReadOnlyStoreError as err:
            log.debug("cannot keep the file `%s`: %s", name, err)
        except ArtifactError as err:
            log.warning("cannot keep the file `%s` for the next run: %s", name, err)


def side_key(name: str, material: Mapping[str, str]) -> str:
    """Return the database key of a kept file."""
    digest = hashlib.sha256(canonical_json({"name": name, "material": dict(material)}).encode()).hexdigest()
    return f"{SIDE}{name}/{digest}"


def is_side_intact(data: bytes) -> bool:
    """Say whether a kept file's digest is that of its bytes."""
    return len(data) >= _DIGEST_BYTES and hashlib.sha256(data[_DIGEST_BYTES:]).digest() == data[:_DIGEST_BYTES]
