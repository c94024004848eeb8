"""All names in the pickles of a checkpoint, also of one that is refused.

Unlike `read_pickle` it goes on after a name that is not allowed. It creates the same inert records, and executes
nothing either.
"""

from __future__ import annotations

import pickletools
from typing import IO, Any

from yolotrt_core.console.text import printable
from yolotrt_core.plugin.description import NameStatus, PickledName
from yolotrt_torch.pickle_names import MAX_NAME, RefusedGlobal, is_allowed, refuse_call
from yolotrt_torch.pickle_reader import MAX_INSTRUCTIONS, CorruptedPickle, Machine
from yolotrt_torch.pickle_records import Global, Stub

MAX_NAMES = 10_000  # an official checkpoint has 40
_KEEPS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_CANNOT_FOLLOW = (
    *(CorruptedPickle, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError),
    RecursionError,
)
_ORDER: tuple[NameStatus, ...] = ("allowed", "unknown", "dangerous")


class Survey(Machine):
    """A machine that records every name with its status, and replaces whatever it cannot follow by a record."""

    def __init__(self, found: dict[str, NameStatus]) -> None:
        super().__init__()
        self.found = found

    def note(self, name: str, status: NameStatus) -> None:
        """Record a name; the worst status counts."""
        name = printable(name[:MAX_NAME])
        before = self.found.get(name, status)
        if name in self.found or len(self.found) < MAX_NAMES:
            self.found[name] = max(before, status, key=_ORDER.index)

    def push_global(self, module: Any, name: Any) -> None:
        whole = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if not whole:  # made up while the file is loaded
            self.note("a computed name", "dangerous")
        else:
            try:
                self.note(whole, "allowed" if is_allowed(module, name) else "unknown")
            except RefusedGlobal:
                self.note(whole, "dangerous")
        self.stack.append(Global(whole[:MAX_NAME]))

    def call(self) -> None:
        function, args = self.pop(2)
        self.stack += (function, args)
        try:
            super().call()
        except RefusedGlobal as refused:
            self.note(refused.name, "dangerous")
            self.stack.append(Stub(refused.name))
        except TypeError:  # a call of something computed
            self.stack.append(Stub(""))
        else:
            return
        if isinstance(function, Global):
            try:
                refuse_call(function.name)
            except RefusedGlobal:
                self.note(function.name, "dangerous")


def survey_pickle(stream: IO[bytes], found: dict[str, NameStatus]) -> bool:
    """Add the names of one pickle to `found`, from the stream's position, up to its end or the first invalid byte.

    After an instruction that the reader cannot follow, names are taken from the instructions alone.

    Returns:
        Whether the pickle has an end.
    """
    machine, unable = Survey(found), False
    texts: list[str] = []  # that a name is made of: the last instructions, except those that keep a value
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if code.name == "STOP" or count > MAX_INSTRUCTIONS:
                return code.name == "STOP"
            if not unable:
                try:
                    machine.run(code.name, argument)
                except _CANNOT_FOLLOW:
                    unable = True
            elif code.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                machine.push_global(module, name)
            elif code.name == "STACK_GLOBAL":
                machine.push_global(*(texts[-2:] if len(texts) > 1 else (None, None)))
            if unable:
                machine.stack.clear()
            if code.name not in _KEEPS:
                texts = [*texts[-1:], argument] if isinstance(argument, str) and code.name in _TEXTS else []
    except (ValueError, OverflowError, RecursionError, DeprecationWarning):  # no instruction
        pass
    return False


def as_names(found: dict[str, NameStatus]) -> tuple[PickledName, ...]:
    """Return names in the order of the pickle, dangerous ones first."""
    names = [PickledName(name, status) for name, status in found.items()]
    return tuple(sorted(names, key=lambda each: -_ORDER.index(each.status)))
