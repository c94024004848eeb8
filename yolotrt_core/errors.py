"""User-facing errors and their exit codes."""

from pathlib import Path


class YolotrtError(Exception):
    """Base class of user-facing errors.

    Args:
        message: one line, lower case, no final stop, literals in backticks; what was expected and found.
        hint: how to fix it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(YolotrtError):
    """Invalid user input: an option, recipe, image or model file."""

    exit_code = 2


class PluginError(YolotrtError):
    """A plugin is missing, broken or conflicts with another."""

    exit_code = 3


class StageError(YolotrtError):
    """A stage or its tool (torch, TensorFlow, onnxruntime, TensorRT) failed.

    The pipeline sets `stage`, `key` and `log`.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        stage: str | None = None,
        key: str | None = None,
        log: Path | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.key = key
        self.log = log


class ArtifactError(YolotrtError):
    """The store cannot be read or written: no space, no permission, corrupted content."""

    exit_code = 5


class GateError(YolotrtError):
    """An engine failed the accuracy gate."""

    exit_code = 6


def os_error_reason(err: OSError) -> str:
    """Return the reason of a system error in lower case, for the end of a message."""
    return (err.strerror or str(err)).lower()
