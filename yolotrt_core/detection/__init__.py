"""Detection runs over files and streams, and their results."""
