"""Terminal output, progress, text and signals."""
