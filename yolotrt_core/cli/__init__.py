"""The command line: `invoke TASK` in a clone, `yolotrt TASK` anywhere; the same tasks."""

from yolotrt_core.cli.program import main, namespace, program

__all__ = ["main", "namespace", "program"]
