"""Paths, digests, atomic writes and downloads."""
