"""Searches over precisions: validated builds, mixed precision, automatic choice."""
