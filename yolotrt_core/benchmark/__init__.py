"""Timing of engines and of whole pipelines."""
