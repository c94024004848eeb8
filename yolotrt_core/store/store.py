"""Artifact store: outputs of stages, addressed by everything that determines them."""

from __future__ import annotations

from yolotrt_core.store.action import Action, Record
from yolotrt_core.store.database import Database
from yolotrt_core.store.execution import Make, OnStart, obtain_artifact
from yolotrt_core.store.gc import GcReport, collect_garbage
from yolotrt_core.store.lineage import Difference, Lineage, find_nearest, trace_lineage
from yolotrt_core.store.side_cache import StoredSideCache
from yolotrt_core.store.verify import VerifyReport, repair_database, verify_database


class Store(Database):
    """Artifacts by key and files by content, shared safely between processes.

    The constructor does not access the disk. Reading needs no write access. Every method may raise
    `ArtifactError` if the disk or database fails.

    Args:
        root: the store's folder, created at the first write.
    """

    def obtain(
        self,
        action: Action,
        make: Make,
        *,
        verify: bool = False,
        force: bool = False,
        on_start: OnStart | None = None,
    ) -> tuple[Record, bool]:
        """Return the record of an action and whether it was cached; build it on a cache miss.

        If several processes request the same action, one builds it and the others wait.

        Args:
            make: called with a folder that contains an empty `out/`; writes every output under `out`
                and returns facts for the record. It may also write `stage.log` and files under `in/`.
            verify: compare the files of a cached artifact with their digests, and rebuild on a mismatch.
            force: rebuild a cached artifact.
            on_start: called just before `make`.

        Raises:
            ArtifactError: the store failed, is full or read-only. Errors of `make` are raised unchanged;
                a `StageError` gets the stage, the key and the path of the log.
        """
        return obtain_artifact(self, action, make, verify=verify, force=force, on_start=on_start)

    def lineage(self, record: Record) -> Lineage:
        """Trace a record's inputs back to the sources."""
        return trace_lineage(self.records(), record)

    def nearest(self, action: Action) -> tuple[Record, tuple[Difference, ...]] | None:
        """Return the most similar record of the same stage and plugin, and the differences."""
        return find_nearest(self.records(), action)

    def side_cache(self) -> StoredSideCache:
        """Return the cache for files that stages keep between runs, such as timing caches."""
        return StoredSideCache(self)

    def verify(self) -> VerifyReport:
        """Compare the whole store with its digests, without changes."""
        return verify_database(self)

    def repair(self) -> VerifyReport:
        """Delete corrupted entries and leftovers of killed processes; return what `verify` found.

        Raises:
            ArtifactError: a build is running in the store.
        """
        return repair_database(self)

    def gc(self, keep_days: float, dry_run: bool = False) -> GcReport:
        """Delete artifacts not needed by a name, a running build or an artifact newer than `keep_days`."""
        return collect_garbage(self, keep_days, dry_run)
