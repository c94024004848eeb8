"""Names inside a store: key prefixes of the database, and files of a work folder."""

ACTION, BLOB, REF, SIDE = "action/", "blob/", "ref/", "side/"
CACHE, LOCKS, WORK = "cache", "locks", "work"
STAGE_LOG, OWNER = "stage.log", "owner.json"
