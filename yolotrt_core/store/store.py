"""Artifact store: outputs of stages, addressed by everything that determines them."""

from __future__ import annotations

from yolotrt_core.store.action import Action, Record
from yolotrt_core.store.database import Database
from yolotrt_core.store.execution import obtain_artifact
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

    obtain = obtain_artifact

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
