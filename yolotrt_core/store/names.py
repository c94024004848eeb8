"""The names inside a store: key spaces of its database, folders, and files of a build's folder."""

ACTION, BLOB, REF, SIDE = "action/", "blob/", "ref/", "side/"
CACHE, LOCKS, WORK = "cache", "locks", "work"
STAGE_LOG, OWNER = "stage.log", "owner.json"
