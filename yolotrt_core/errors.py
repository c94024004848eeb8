"""Errors that yolotrt shows to its users, and the exit codes they end a command with."""

from pathlib import Path


class YolotrtError(Exception):
    """Base of every error that is the user's to read: one line, what to do in `hint`.

    Args:
        message: lower case, no final stop, literals in backticks; says what was expected and
            what was found.
        hint: what to do about it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(YolotrtError):
    """A bad option, recipe, image or model file: something only the caller can mend."""

    exit_code = 2


class PluginError(YolotrtError):
    """A plugin that is missing, broken, or in conflict with another."""

    exit_code = 3


class StageError(YolotrtError):
    """A stage whose tool (torch, TensorFlow, onnxruntime, TensorRT) failed.

    The pipeline fills in `stage`, `key` and `log` before the user sees the error.
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
    """The store cannot be read or written: no space, no permission, damaged content."""

    exit_code = 5


class GateError(YolotrtError):
    """An engine was built but lost more accuracy than the gate allows."""

    exit_code = 6


def os_error_reason(err: OSError) -> str:
    """Return why the system refused, lower case, as messages end with it."""
    return (err.strerror or str(err)).lower()
