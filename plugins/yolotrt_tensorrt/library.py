"""The imported TensorRT: its logger, its errors, and compatibility checks of engines."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import StageError
from yolotrt_core.types import EngineSpec
from yolotrt_tensorrt import discovery
from yolotrt_tensorrt.cuda import driver
from yolotrt_tensorrt.discovery import Installed

if TYPE_CHECKING:
    import tensorrt

_log = logging.getLogger(__name__)

_LONGEST_MESSAGE = 400
# Magic number of plans of TensorRT-RTX 1.6 and 1.7.
RTX_MAGIC = b"vtrt"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of TensorRT's log; severity by name, e.g. `ERROR`."""

    severity: str
    text: str


@dataclass(slots=True, eq=False)
class Messages:
    """Messages that TensorRT logged during a `Library.collecting` block."""

    all: list[Message] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        return [m.text for m in self.all if m.severity in ("ERROR", "INTERNAL_ERROR")]

    @property
    def verbose(self) -> list[str]:
        return [m.text for m in self.all if m.severity == "VERBOSE"]

    def last_error(self) -> str:
        """Return the last error in one line, or a placeholder."""
        text = " ".join(self.errors[-1].split()) if self.errors else "no reason given"
        return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 4] + " ..."


class Library:
    """One TensorRT module, imported.

    TensorRT has one logger per process: a second one would lose messages. So each module is loaded once (`load`),
    and its logger passes every message to Python's logging and to active collectors.

    Attributes:
        trt: the module. installed: its name and version. logger: its `ILogger`.
    """

    def __init__(self, found: Installed) -> None:
        self.installed = found
        self.trt = _imported(found)
        self._collectors: list[Messages] = []
        self.logger: tensorrt.ILogger = _logger(self.trt, self._collectors)

    def has(self, *names: str) -> bool:
        """Check for `Class`, `Class.member` or `Enum.MEMBER`.

        Features of releases are detected this way, never by version numbers.
        """
        return all(_has(self.trt, name) for name in names)

    @contextmanager
    def collecting(self) -> Iterator[Messages]:
        """Collect TensorRT's messages during the block, of all threads."""
        messages = Messages()
        self._collectors.append(messages)
        try:
            yield messages
        finally:
            self._collectors.remove(messages)
            # A build logs thousands of messages: separate records would slow it by a third.
            if not self._collectors and messages.verbose and _log.isEnabledFor(logging.DEBUG):
                _log.debug("all messages:\n%s", "\n".join(f"{m.severity} {m.text}" for m in messages.all))

    def failure(self, doing: str, messages: Messages, hint: str | None = None) -> StageError:
        """Create the error for a call that returned None or False."""
        return StageError(f"{self.installed} failed to {doing}: {messages.last_error()}", hint=hint)

    def __str__(self) -> str:
        return str(self.installed)


@functools.cache
def load(module: str) -> Library:
    """Import a TensorRT module, once per process.

    Args:
        module: `auto`, `tensorrt` or `tensorrt_rtx`, see `discovery.choose`.

    Raises:
        PluginError: not installed. StageError: the import failed.
    """
    found = discovery.choose(module)
    return load(found.module) if found.module != module else Library(found)


def check_engine(spec: EngineSpec, device: int = 0) -> Library:
    """Return the library that can load an engine, according to its spec.

    Args:
        spec: the engine's sidecar. device: number of the CUDA device to run on.

    Raises:
        StageError: built by another TensorRT, or for another GPU.
    """
    module, version = spec.tools.get("module", ""), spec.tools.get("version", "")
    if module not in discovery.MODULES:
        raise StageError(f"the engine was built by `{module or spec.builder}`, not by TensorRT")
    rebuild = "rebuild the engine on this machine"
    found = discovery.find(module)
    if found is None or found.missing:
        installed = [str(f) for m in discovery.MODULES if (f := discovery.find(m)) and not f.missing]
        raise StageError(
            f"the engine was built by `{module}` {version}, but found " + (" and ".join(installed) or "no TensorRT"),
            hint=f"{discovery.INSTALL[module]}, or {rebuild}",
        )
    if found.version != version:
        raise StageError(
            f"the engine was built by `{module}` {version}, but found {found.version}: a plan loads only in the "
            "release that built it",
            hint=f"{rebuild}, or install {version}",
        )
    if "compute_capability" in spec.tools:
        gpu = driver.gpu(device)
        if gpu.capability != spec.tools["compute_capability"]:
            raise StageError(
                f"the engine was built for {spec.tools.get('gpu')} (compute capability "
                f"{spec.tools['compute_capability']}), but found {gpu.name} ({gpu.capability})",
                hint=rebuild,
            )
        if gpu.name != spec.tools.get("gpu"):
            _log.warning("the engine was tuned for %s and runs on %s", spec.tools.get("gpu"), gpu.name)
    return load(module)


def check_plan(library: Library, runtime: tensorrt.Runtime, plan: bytes) -> None:
    """Refuse an incompatible plan before loading it, where the library can detect it.

    Args:
        plan: the whole engine file.

    Raises:
        StageError: not a plan of this library, or not for this GPU or driver; lists all reasons.
    """
    if library.installed.is_rtx and not plan.startswith(RTX_MAGIC):
        raise StageError(f"the file is not an engine of {library}", hint="rebuild it")
    if not library.has("Runtime.get_engine_validity", "EngineValidity", "EngineInvalidityDiagnostics"):
        return
    validity, mask = runtime.get_engine_validity(plan)
    if validity != library.trt.EngineValidity.INVALID:
        return
    known = library.trt.EngineInvalidityDiagnostics.__members__
    reasons = [name.lower().replace("_", " ") for name, bit in known.items() if int(mask) & int(bit)]
    if reasons == ["unsupported cc"]:
        # 1.6.1 reports this for an H100 (9.0), where plans do run: loading the plan decides.
        _log.info("%s does not list this GPU as supported", library)
        return
    hint = "rebuild it on this machine, or see `doctor` for the driver"
    raise StageError(
        f"{library} cannot run this engine on this machine: {', '.join(reasons) or 'no usable GPU driver'}", hint=hint
    )


def _imported(found: Installed) -> Any:
    try:
        return importlib.import_module(found.module)
    except (ImportError, OSError) as err:
        raise StageError(f"{found} cannot be imported: {err}", hint=discovery.INSTALL[found.module]) from err


def _has(root: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not hasattr(root, part):
            return False
        root = getattr(root, part)
    return True


def _logger(trt: Any, collectors: list[Messages]) -> Any:
    """Create the process's `ILogger`; the base class exists only after the import."""

    class Logger(trt.ILogger):  # type: ignore[misc] # the module is only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: tensorrt.ILogger.Severity, text: str) -> None:
            message = Message(level.name, text)
            for messages in tuple(collectors):  # another thread may start or stop collecting
                messages.all.append(message)
            # For the stage's log: errors also become a StageError, and `builder` selects warnings to show.
            if message.severity != "VERBOSE":
                _log.debug("%s %s", message.severity, text)

    return Logger()
