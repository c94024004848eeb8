"""Side files that make later runs faster, such as timing caches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from yolotrt_core.errors import ArtifactError
from yolotrt_core.store.action import canonical_json
from yolotrt_core.store.database import Database
from yolotrt_core.store.errors import ReadOnlyStoreError
from yolotrt_core.store.names import SIDE

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class StoredSideCache:
    """A `SideCache` in the artifact store; each file starts with its digest."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        """Return the last file saved for this name and material; None if missing or corrupted."""
        try:
            with self._database.reporting():
                cache = self._database.reading()
                data: bytes | None = cache.get(side_key(name, material)) if cache is not None else None
        except ArtifactError as err:
            log.warning("cannot read the cache file `%s`: %s", name, err)
            return None
        if data is None:
            return None
        if not is_side_intact(data):
            log.warning("ignoring the corrupted cache file `%s`", name)
            return None
        return data[_DIGEST_BYTES:]

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        """Save `data`, replacing the previous file; failures are logged only."""
        try:
            with self._database.writing() as cache:
                try:
                    cache.set(side_key(name, material), hashlib.sha256(data).digest() + data)
                except BaseException:  # raised again: remove the partial file
                    cache.close()
                    cache.sweep()
                    raise
        except ReadOnlyStoreError as err:
            log.debug("cannot save the cache file `%s`: %s", name, err)
        except ArtifactError as err:
            log.warning("cannot save the cache file `%s` for the next run: %s", name, err)


def side_key(name: str, material: Mapping[str, str]) -> str:
    """Return the database key of a side file."""
    digest = hashlib.sha256(canonical_json({"name": name, "material": dict(material)}).encode()).hexdigest()
    return f"{SIDE}{name}/{digest}"


def is_side_intact(data: bytes) -> bool:
    """Return whether a side file matches its digest."""
    return len(data) >= _DIGEST_BYTES and hashlib.sha256(data[_DIGEST_BYTES:]).digest() == data[:_DIGEST_BYTES]
