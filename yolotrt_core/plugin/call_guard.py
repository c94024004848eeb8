"""The one way in which the core calls a stage outside its work.

A stage's code is anyone's: whatever it raises beside our own errors, and whatever it answers of another type
than its kind promises, becomes a PluginError that names stage and distribution. The methods that do a stage's
work are passed on as they are; the pipeline answers for those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from yolotrt_core.errors import PluginError, YolotrtError
from yolotrt_core.plugin.stages import Availability, DeviceProgram, SourceInfo
from yolotrt_core.types import PRECISIONS, Detections

# What a method's answer should be, in words, or None if the answer is fine; `given` are its arguments.
_Check = Callable[[Any, Sequence[Any]], str | None]


@contextlib.contextmanager
def answering(owner: str, dist: str, member: str) -> Iterator[None]:
    """Turn whatever a plugin's code raises in the block into a PluginError.

    Args:
        owner: as in ``builder `mine` of `yolotrt-mine```. member: what was called.

    Raises:
        PluginError: names owner and member. Our own errors, an interrupt, a lack of memory and a reader that is gone
            pass as they are.
    """
    try:
        yield
    except (YolotrtError, MemoryError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as err:  # another's code may fail in any way
        words = " ".join(str(err).split())[:300]
        told = f"`{member}` of {owner} failed with {type(err).__name__}" + (f": {words}" if words else "")
        raise PluginError(told, hint=_report(dist)) from err


def guarded(stage: Any, owner: str, dist: str, *, wrap_sessions: bool) -> Any:
    """Return a stand-in for a stage: every attribute is the stage's, calls outside its work are checked.

    Args:
        wrap_sessions: whether what `open` returns gets such a stand-in too.
    """
    members = {name: _checked(name, check) for name, check in _STAGE.items() if callable(getattr(stage, name, None))}
    if wrap_sessions:
        for name in ("open", "open_source"):
            if name in members:
                members[name] = _opening(members[name])
    return _stand_in(stage, members)(stage, owner, dist)


class _StandIn:
    """Passes everything on to what it stands for; methods of its sub-classes check calls on the way."""

    def __init__(self, real: Any, owner: str, dist: str) -> None:
        self._real, self._owner, self._dist = real, owner, dist

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._real, name)


def _stand_in(real: Any, members: Mapping[str, Any]) -> type[_StandIn]:
    # On Python 3.12 `isinstance` with a protocol asks the class alone, so what a stage may offer must lie there.
    return type(type(real).__name__, (_StandIn,), dict(members))


def _checked(name: str, check: _Check) -> Callable[..., Any]:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        with answering(self._owner, self._dist, name):
            answer = getattr(self._real, name)(*given, **named)
            expected = check(answer, (*given, *named.values()))
        if expected is not None:
            raise PluginError(
                f"`{name}` of {self._owner} should return {expected}, it returned {shown(answer)}",
                hint=_report(self._dist),
            )
        return answer

    return call


def _opening(call: Callable[..., Any]) -> Callable[..., Any]:
    def opened(self: Any, *given: Any, **named: Any) -> Any:
        session = call(self, *given, **named)
        offered: dict[str, Any] = {
            name: _checked(name, check) for name, check in _SESSION.items() if hasattr(session, name)
        }
        offered |= {name: _passed_on(name) for name in _SESSION_CALLS if hasattr(session, name)}
        offered |= {name: _property(name) for name in _SESSION_PROPERTIES if hasattr(session, name)}
        offered |= {"__enter__": _enter, "__exit__": _exit}
        owner = f"the session of {self._owner}"
        return _stand_in(session, offered)(session, owner, self._dist)

    return opened


def _passed_on(name: str) -> Callable[..., Any]:
    return lambda self, *given, **named: getattr(self._real, name)(*given, **named)


def _property(name: str) -> property:
    return property(lambda self: getattr(self._real, name))


def _enter(self: Any) -> Any:
    self._real.__enter__()
    return self


def _exit(self: Any, *error: Any) -> None:
    self._real.__exit__(*error)


def shown(answer: Any) -> str:
    """Return a value as an error names it: its type, and itself where that is short."""
    if isinstance(answer, type):
        return f"the class `{answer.__name__}`"
    text = repr(answer)
    return f"{type(answer).__name__} `{text}`" if len(text) <= 60 else f"{type(answer).__name__}"


def _report(dist: str) -> str:
    return f"this is a fault of the plugin: report it to the authors of `{dist}`"


def _is(kind: type | tuple[type, ...], words: str) -> _Check:
    return lambda answer, given: None if isinstance(answer, kind) else words


def _anything(answer: Any, given: Sequence[Any]) -> str | None:
    return None


def _texts(answer: Any, given: Sequence[Any]) -> str | None:
    plain = isinstance(answer, Mapping) and all(isinstance(t, str) for pair in answer.items() for t in pair)
    return None if plain else "a mapping of str to str"


def _names(answer: Any, given: Sequence[Any]) -> str | None:
    plain = isinstance(answer, (tuple, list)) and all(isinstance(name, str) for name in answer)
    return None if plain else "a tuple of str"


def _source_info(answer: Any, given: Sequence[Any]) -> str | None:
    if not isinstance(answer, SourceInfo):
        return "a `SourceInfo`"
    imgsz: Any = answer.imgsz
    sides = imgsz if isinstance(imgsz, (tuple, list)) and len(imgsz) == 2 else ()
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if imgsz is not None and not (sides and whole):
        return "a `SourceInfo` with `imgsz` (height, width) in pixels or None"
    if answer.precision not in (None, *PRECISIONS[1:]):
        return f"a `SourceInfo` with `precision` one of {', '.join(PRECISIONS[1:])} or None"
    return None


def _session(answer: Any, given: Sequence[Any]) -> str | None:
    whole = all(hasattr(answer, name) for name in ("spec", "infer", "close", "__enter__", "__exit__"))
    return None if whole and not isinstance(answer, type) else "a session (`spec`, `infer`, `close`, a context manager)"


def _arrays(answer: Any, given: Sequence[Any]) -> str | None:
    plain = isinstance(answer, Mapping) and all(isinstance(n, str) and hasattr(a, "shape") for n, a in answer.items())
    return None if plain else "a mapping of output name to array"


def _frame(answer: Any, given: Sequence[Any]) -> str | None:
    return None if hasattr(answer, "shape") else "an array"


def _frames(answer: Any, given: Sequence[Any]) -> str | None:
    whole = isinstance(answer, list) and len(answer) == given[0] and all(hasattr(frame, "shape") for frame in answer)
    return None if whole else f"a list of {given[0]} arrays"


def _decoded(answer: Any, given: Sequence[Any]) -> str | None:
    """Check `decode(files)` of a session: an image or None for each file."""
    whole = isinstance(answer, (list, tuple)) and len(answer) == len(given[0])
    known = whole and all(one is None or hasattr(one, "shape") for one in answer)
    return None if known else f"an image or None for each of {len(given[0])} files"


def _detections(answer: Any, given: Sequence[Any]) -> str | None:
    """Check `decode(raw, spec, geometry, ...)`: one whole Detections for each image."""
    images = len(given[2])
    if not isinstance(answer, (list, tuple)) or not all(isinstance(d, Detections) for d in answer):
        return "a list of Detections"
    if len(answer) != images:
        return f"one Detections for each of {images} images"
    for found in answer:
        shapes = [getattr(part, "shape", None) for part in (found.boxes, found.scores, found.class_ids)]
        count = shapes[1][0] if shapes[1] else None
        if shapes != [(count, 4), (count,), (count,)]:
            return "boxes (M, 4), scores (M,) and class_ids (M,) as arrays"
    return None


_ABLE = _is(Availability, "an `Availability`")
_BOOL = _is(bool, "True or False")
_STAGE: Mapping[str, _Check] = {
    "available": _ABLE,
    "runnable": _ABLE,
    "fingerprint": _texts,
    "applies": _BOOL,
    "takes_ranges": _BOOL,
    "rounds_fp32": _BOOL,
    "preflight": _anything,
    "inspect": _source_info,
    "check_options": _anything,
    "place": _texts,
    "layers": _names,
    "open": _session,
    "open_source": _session,
    "device_program": _is(DeviceProgram, "a `DeviceProgram`"),
    "contents": _anything,
    "decode": _detections,
}
_SESSION: Mapping[str, _Check] = {
    "infer": _arrays,
    "detect": _is(list, "a list of Detections"),
    "pinned_frames": _frames,
    "pinned_copy": _frame,
    "page_lock": _anything,
    "decode": _decoded,
    "close": _anything,
    "time_engine": _is(list, "a list of milliseconds"),
    "time_steps": _is(Mapping, "milliseconds by step"),
}
# Passed on unchecked: `stream` raises also what the caller's own frames raise.
_SESSION_CALLS = ("stream",)
_SESSION_PROPERTIES = ("spec", "graph", "decodes_files")
