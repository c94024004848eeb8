"""Reads pickles without executing code.

`pickle.Unpickler` calls what a file names. This reader interprets the same instructions, but creates only plain
containers and the inert records of `pickle_records`; names outside `pickle_names.ALLOWED` are an error. So untrusted
checkpoints can be read safely.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import UsageError
from yolotrt_torch.numpy_values import encoded, scalar
from yolotrt_torch.pickle_names import RefusedGlobal as RefusedGlobal, UnknownClass, is_allowed, refuse_call
from yolotrt_torch.pickle_records import (
    Global as Global,
    Storage as Storage,
    Stub as Stub,
    TensorRef as TensorRef,
)

_MEMBER = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
_FORWARDS = ("forward", "forward_fuse", "fuseforward")  # methods that segmentation and fused checkpoints refer to
MAX_INSTRUCTIONS = 20_000_000  # the largest official checkpoint has 0.2 million
_CHARACTERS_PER_ITEM = 64  # of a copied text
MAX_COPIES = 1_000_000  # items copied by calls: a long list, referenced often, could otherwise exhaust the memory


class CorruptedPickle(UsageError):  # noqa: N818 - says what it is
    """The bytes are not a pickle that PyTorch writes."""


def read_pickle(stream: IO[bytes]) -> Any:
    """Read one pickle from the stream's position, which then is right after it.

    Returns:
        dict, list, tuple, set, str, int, float, bool, None, bytes, and the records of `pickle_records`.

    Raises:
        RefusedGlobal: a name that can run code. UnknownClass: other names outside `pickle_names.ALLOWED`, after the
            whole pickle was searched for the former. CorruptedPickle: any other error.
    """
    machine = Machine()
    try:
        for count, (code, argument) in enumerate(_instructions(stream)):
            if code.name == "STOP":
                break
            if count > MAX_INSTRUCTIONS:
                raise CorruptedPickle(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")
            machine.run(code.name, argument)
        if len(machine.stack) != 1 or machine.stack[0] is _MARK:
            raise CorruptedPickle("the pickle is corrupted (it does not end with one value)")
        if machine.unknown:
            raise UnknownClass(tuple(machine.unknown))
        return machine.stack[0]
    except (
        ValueError,  # also UnicodeDecodeError, and pickletools' error for invalid instructions
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        MemoryError,
        RecursionError,
        DeprecationWarning,  # pickletools warns of a damaged text as of a program's source; an error where asked
    ) as err:
        raise CorruptedPickle(f"the pickle is corrupted ({type(err).__name__}: {first_line(err)[:80]})") from err


def _instructions(stream: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield each instruction with its argument."""
    for code, argument, _ in pickletools.genops(stream):
        yield code, argument


class _Mark:
    """Where a group of stack items starts."""


_MARK = _Mark()
_MAX_KEY = 16  # items of a tuple as a key
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


class Machine:
    """The stack and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        self.unknown: dict[str, None] = {}  # in order

    def run(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        step = _STEPS.get(name)
        if step is not None:
            step(self, argument)
        elif _VALUES.fullmatch(name):
            self.stack.append(argument)
        elif name not in ("PROTO", "FRAME"):
            raise CorruptedPickle(f"the pickle has an unsupported instruction `{name}`")

    def charge(self, copied: Any) -> None:
        """Count the copied items of a call, and refuse a file above the limit."""
        if isinstance(copied, (list, tuple, dict, set)):
            self.copied += len(copied)
        elif isinstance(copied, (str, bytes)):
            self.copied += len(copied) // _CHARACTERS_PER_ITEM
        if self.copied > MAX_COPIES:
            raise MemoryError("too many copied items")

    def pop_group(self) -> list[Any]:
        """Pop the items above the last mark."""
        for depth in range(len(self.stack) - 1, -1, -1):
            if self.stack[depth] is _MARK:
                group = self.stack[depth + 1 :]
                del self.stack[depth:]
                return group
        raise IndexError("no mark")

    def pop(self, count: int) -> tuple[Any, ...]:
        """Pop `count` items from the stack."""
        if len(self.stack) < count:
            raise IndexError("stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is not a text")
        whole = f"{module}.{name}"
        if not is_allowed(module, name):
            self.unknown[whole] = None
        self.stack.append(Global(whole))

    def fill(self, items: list[Any]) -> None:
        """Put key, value, key, value ... into the dict on top."""
        target = self.stack[-1]
        if isinstance(target, Stub):  # a dict subclass, only recorded
            target = target.state
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("expected a dict and pairs")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain(key)] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Stub):  # a list subclass, whose items nothing uses
            return
        if not isinstance(target, list):
            raise TypeError("expected a list")
        target.extend(items)

    def call(self) -> None:
        """Handle REDUCE and NEWOBJ: a call with its arguments."""
        function, args = self.pop(2)
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise TypeError("expected a name and its arguments")
        self.charge(args[0] if args else None)
        special = _CALLS.get(function.name)
        if special is None:
            refuse_call(function.name)
        self.stack.append(special(args) if special else Stub(function.name, args))

    def build(self) -> None:
        """Handle BUILD: attributes of the top object."""
        (state,) = self.pop(1)
        target = self.stack[-1]
        if isinstance(target, (dict, set, TensorRef)):
            return  # e.g. `_metadata` of a state_dict: not needed
        if not isinstance(target, Stub):
            raise TypeError("expected an object")
        target.built = state
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.charge(part)
                target.state.update(part)

    def refer(self) -> None:
        """Handle BINPERSID: a tensor's storage, or a class with its source text in the oldest files."""
        (reference,) = self.pop(1)
        if not isinstance(reference, tuple) or len(reference) < 2:
            raise TypeError("unknown persistent id")
        if reference[0] == "module" and isinstance(reference[1], Global):
            self.stack.append(reference[1])
            return
        tag, kind, key, _, count = reference[:5]
        if tag != "storage" or not isinstance(kind, Global) or not isinstance(key, str):
            raise TypeError("unknown persistent id")
        if type(count) is not int or count < 0 or (len(reference) > 5 and reference[5] is not None):
            raise ValueError("a storage that is a view of another")
        self.stack.append(Storage(kind.name.rpartition(".")[2], key, count))


def _plain(key: Any) -> Any:
    """Refuse keys with an unbounded hashing cost (nested tuples)."""
    if isinstance(key, tuple) and len(key) <= _MAX_KEY and all(isinstance(item, _PLAIN_KEYS) for item in key):
        return key
    if not isinstance(key, (*_PLAIN_KEYS, Global, Stub, TensorRef)):
        raise TypeError(f"a key of type {type(key).__name__}")
    return key


def _tensor(args: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, stride = args[:4]
    if len(shape) != len(stride) or len(shape) > 16:
        raise ValueError("a tensor whose shape and strides disagree")
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise TypeError("invalid arguments of a tensor")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _parameter(args: tuple[Any, ...]) -> TensorRef:
    if not args or not isinstance(args[0], TensorRef):
        raise TypeError("a parameter that is not a tensor")
    return args[0]


def _ordered(args: tuple[Any, ...]) -> dict[Any, Any]:
    pairs = args[0] if args else []
    return {_plain(key): value for key, value in pairs}


def _set(args: tuple[Any, ...]) -> set[Any]:
    return {_plain(item) for item in (args[0] if args else [])}


def _getattr(args: tuple[Any, ...]) -> Stub:
    """Record a forward method, or a member of an enumeration."""
    owner, name = args if len(args) == 2 else (None, None)
    is_member = isinstance(owner, Global) and isinstance(name, str) and _MEMBER.fullmatch(name)
    if not isinstance(owner, (Stub, Global)) or (name not in _FORWARDS and not is_member):
        raise RefusedGlobal(f"getattr(..., {name[:40] if isinstance(name, str) else '?'})")
    return Stub("getattr", args)


def _object(args: tuple[Any, ...]) -> Stub:
    """Record an object that `copyreg` creates: (class, base, initial value)."""
    if not args or not isinstance(args[0], Global):
        raise TypeError("an object without a class")
    return Stub(args[0].name)


def _typed_tensor(args: tuple[Any, ...]) -> TensorRef:
    """Return a tensor with attributes of its own: (function, class, its arguments, attributes)."""
    function, _, given = args[:3]
    rebuild = _TENSORS.get(function.name) if isinstance(function, Global) else None
    if rebuild is None or not isinstance(given, tuple):
        raise TypeError("invalid arguments of a tensor")
    return rebuild(given)


_TENSORS: dict[str, Callable[[tuple[Any, ...]], TensorRef]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda args: {},
    "__builtin__.set": _set,
    "builtins.set": _set,
    "__builtin__.frozenset": _set,
    "builtins.frozenset": _set,
    "__builtin__.getattr": _getattr,
    "builtins.getattr": _getattr,
    "copyreg._reconstructor": _object,
    "copy_reg._reconstructor": _object,
    "torch.Size": lambda args: tuple(args[0]) if args and isinstance(args[0], (tuple, list)) else (),
    "__builtin__.bytes": encoded,
    "builtins.bytes": encoded,
    "_codecs.encode": encoded,
    "numpy.core.multiarray.scalar": scalar,
    "numpy._core.multiarray.scalar": scalar,
}


def _memoize(machine: Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _stack_global(machine: Machine, _: Any) -> None:
    machine.push_global(*machine.pop(2))


def _inst(machine: Machine, argument: Any) -> None:
    args = machine.pop_group()
    machine.push_global(*_module_and_name(argument))
    machine.stack.append(tuple(args))
    machine.call()


def _module_and_name(argument: Any) -> tuple[str, str]:
    module, _, name = str(argument).partition(" ")
    return module, name


def _call_with_names(machine: Machine, _: Any) -> None:
    """Handle NEWOBJ_EX: a call with keyword arguments, which no class that is used takes."""
    (keywords,) = machine.pop(1)
    if not isinstance(keywords, dict):
        raise TypeError("expected a dict")
    machine.call()


def _set_item(machine: Machine, _: Any) -> None:
    machine.fill(list(machine.pop(2)))


def _add_items(machine: Machine, _: Any) -> None:
    items = machine.pop_group()
    if isinstance(machine.stack[-1], Stub):  # a set subclass, whose items nothing uses
        return
    if not isinstance(machine.stack[-1], set):
        raise TypeError("expected a set")
    machine.stack[-1].update(_plain(item) for item in items)


def _pairs(machine: Machine, _: Any) -> None:
    items = machine.pop_group()
    machine.stack.append({})
    machine.fill(items)


_VALUES = re.compile(
    r"(SHORT_)?BIN(STRING|UNICODE8?|BYTES8?)|BYTEARRAY8|(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|STRING|UNICODE"
)
_STEPS: dict[str, Callable[[Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_MARK),
    "POP": lambda m, _: m.pop(1),
    "POP_MARK": lambda m, _: m.pop_group(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_group())),
    "TUPLE1": lambda m, _: m.stack.append(m.pop(1)),
    "TUPLE2": lambda m, _: m.stack.append(m.pop(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.pop(3)),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "LIST": lambda m, _: m.stack.append(m.pop_group()),
    "APPEND": lambda m, _: m.extend(list(m.pop(1))),
    "APPENDS": lambda m, _: m.extend(m.pop_group()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": _pairs,
    "SETITEM": _set_item,
    "SETITEMS": lambda m, _: m.fill(m.pop_group()),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "ADDITEMS": _add_items,
    "FROZENSET": lambda m, _: m.stack.append({_plain(item) for item in m.pop_group()}),
    "GLOBAL": lambda m, argument: m.push_global(*_module_and_name(argument)),
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "NEWOBJ_EX": _call_with_names,
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.refer(),
    "PUT": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": _memoize,
    "GET": lambda m, argument: m.stack.append(m.memo[argument]),
    "BINGET": lambda m, argument: m.stack.append(m.memo[argument]),
    "LONG_BINGET": lambda m, argument: m.stack.append(m.memo[argument]),
}
