"""The artifact store: the output of each stage, found again by the stage's inputs."""

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

    Constructing one touches no disk; reading needs no write access, so a read-only store serves
    what it holds. Every method may raise `ArtifactError` for a disk or database that fails.

    Args:
        root: the store's folder; made when something is first written.
    """

    obtain = obtain_artifact

    def lineage(self, record: Record) -> Lineage:
        """Trace a record's inputs back to the sources."""
        return trace_lineage(self.records(), record)

    def nearest(self, action: Action) -> tuple[Record, tuple[Difference, ...]] | None:
        """Return the record of the same stage and plugin that differs least, and in what."""
        return find_nearest(self.records(), action)

    def side_cache(self) -> StoredSideCache:
        """Return the cache where stages keep timing caches and the like between runs."""
        return StoredSideCache(self)

    def verify(self) -> VerifyReport:
        """Read everything and compare it with its digests; changes nothing."""
        return verify_database(self)

    def repair(self) -> VerifyReport:
        """Delete what `verify` finds damaged, and what killed processes left; returns what it found.

        Raises:
            ArtifactError: something is being built in the store.
        """
        return repair_database(self)

    def gc(self, keep_days: float, dry_run: bool = False) -> GcReport:
        """Delete what no name, no running build and nothing younger than `keep_days` needs."""
        return collect_garbage(self, keep_days, dry_run)
