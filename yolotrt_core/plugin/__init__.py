"""Plugin contract and registry."""
