"""The examples are distributions of their own: `tests/packaging/test_examples.py` installs and tests them."""

collect_ignore_glob = ["*"]
