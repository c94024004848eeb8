"""The reader executes nothing, agrees with Python's own unpickler on plain data, and survives hostile bytes."""

from __future__ import annotations

import collections
import io
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from yolotrt_core.errors import UsageError
from yolotrt_torch import pickle_reader
from yolotrt_torch.pickle_names import UnknownClass
from yolotrt_torch.pickle_reader import CorruptedPickle, RefusedGlobal, Stub, read_pickle


class Command:
    """Runs a command when a genuine unpickler reads it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_is_not_run_and_its_name_is_told(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps({"model": [1, Command(os.system, f"touch {mark}")]}, protocol)
    pickle.loads(data)
    assert mark.exists()  # the pickle is live: Python's own unpickler runs it
    mark.unlink()
    with pytest.raises(RefusedGlobal, match=r"refused: the pickle contains `posix\.system`.*nothing was executed"):
        read(data)
    assert not mark.exists()


@pytest.mark.parametrize("function", [eval, exec, __import__, getattr(os, "popen"), print, open])  # noqa: B009
def test_other_functions_are_refused(function: Any) -> None:
    with pytest.raises(RefusedGlobal, match=function.__name__):
        read(pickle.dumps(Command(function, "1"), 2))


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch x'\nios\nsystem\n.",  # INST, the oldest way to call
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",  # STACK_GLOBAL
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"\x80\x02ctorch.nn.modules.conv\nConv2d.forward.__globals__\n.",
        b"\x80\x02cmodels.common\nConv.__init__\n.",
    ],
)
def test_every_road_to_a_name_is_guarded(program: bytes) -> None:
    with pytest.raises(RefusedGlobal):
        read(program)


@pytest.mark.parametrize("name", ["forward", "forward_fuse", "fuseforward"])
def test_getattr_reaches_the_forward_methods_only(name: str) -> None:
    start = b"\x80\x02c__builtin__\ngetattr\ncmodels.yolo\nDetect\n"
    assert isinstance(read(start + b"X" + struct.pack("<I", len(name)) + name.encode() + b"\x86R."), Stub)
    with pytest.raises(RefusedGlobal, match="__init__"):
        read(start + b"X\x08\x00\x00\x00__init__\x86R.")


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub load", "torch.storage _load_from_bytes", "torch.jit._script unpackage_script_module",
        "torch.fx.graph_module reduce_graph_module", "numpy.testing._private.utils runstring", "numpy.f2py capi_maps",
        "shutil rmtree", "subprocess Popen", "importlib import_module", "builtins exec", "__builtin__ eval",
        "operator attrgetter", "functools partial", "types FunctionType", "pickle loads", "_pickle loads", "nt system",
        "runpy _run_code", "webbrowser open", "pip main", "dill._dill _create_function", "cloudpickle.cloudpickle "
        "_make_function", "joblib.numpy_pickle load", "socket create_connection", "ctypes CDLL", "sys exit",
        "anything.at.all eval", "fork.blocks __import__", "models.common __builtins__",
    ],
)  # fmt: skip
def test_names_that_run_code_are_refused_without_a_call(name: str) -> None:
    module, _, last = name.partition(" ")
    with pytest.raises(RefusedGlobal, match="nothing was executed"):
        read(f"\x80\x02c{module}\n{last}\n.".encode("latin-1"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("models.common", "os.system"),
        ("utils.general", "subprocess.run"),
        ("models.yolo", "Detect.__init__.__globals__"),
    ],
)
def test_names_are_not_looked_up_through_a_module(module: str, name: str) -> None:
    """From protocol 4 on, Python follows the dots of a name through what its module has imported."""
    program = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in (module, name)) + b"\x93."
    with pytest.raises(RefusedGlobal):
        read(program)


@pytest.mark.parametrize(
    "function",
    ["utils.general check_requirements", "models.experimental attempt_load", "torchvision.models.resnet resnet18"],
)
def test_functions_may_be_named_but_not_called(function: str) -> None:
    name = "c" + function.replace(" ", "\n") + "\n"
    read(f"\x80\x02{name}.".encode("latin-1"))
    with pytest.raises(RefusedGlobal):
        read(f"\x80\x02{name}X\x01\x00\x00\x00x\x85R.".encode("latin-1"))


def test_other_code_is_not_called_dangerous() -> None:
    with pytest.raises(UnknownClass) as caught:
        read(b"\x80\x02cfork.blocks\nCBAM\n)\x81(K\x01e}X\x01\x00\x00\x00aK\x01sb0cfork.heads\nHead\n.")
    assert caught.value.names == ("fork.blocks.CBAM", "fork.heads.Head")
    assert not re.search("refused|executed|danger|suspicious", str(caught.value))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None)
@given(value=plain, protocol=st.sampled_from([3, 4, 5]))
def test_plain_values_come_back_as_pickle_reads_them(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


def test_containers_that_checkpoints_use() -> None:
    ordered = collections.OrderedDict([("b", 1), ("a", {2, 3})])
    for protocol in (2, 4):
        found = read(pickle.dumps(ordered, protocol))
        assert list(found.items()) == list(ordered.items())


def test_a_value_that_holds_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found = read(pickle.dumps(loop, 2))
    assert found[0] is found


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), protocol=st.booleans())
def test_any_bytes_give_a_value_or_one_of_our_errors(data: bytes, protocol: bool) -> None:
    try:
        read((b"\x80\x02" if protocol else b"") + data)
    except UsageError as err:
        assert "\n" not in str(err)


def _deep_key() -> bytes:
    # A tuple in a tuple ..., as the key of a dict: Python hashes it by recursion without a limit.
    return b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."


def _copies() -> bytes:
    # One list of 10,000 numbers, turned into a torch.Size a thousand times.
    items = b"](" + b"K\x01" * 10_000 + b"e"
    return b"\x80\x02" + items + b"q\x01ctorch\nSize\nq\x02" + b"h\x02h\x01\x85R" * 1000 + b"."


@pytest.mark.parametrize(
    "program",
    [
        _deep_key(),
        _copies(),
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GiB in a file of 12 bytes
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",  # an integer of 2 GiB
        b"\x80\x02(((((.",
        b"\x80\x02]K\x01K\x02s.",  # an item set in a list
        b"\x80\x02K\x01K\x02R.",  # a number called
        b"\x80\x02h\x05.",  # a memo that was never filled
        b"\x80\x02K\x01Q.",  # a storage that is a number
        b"\x80\x02",
        b".",
    ],
    ids=lambda p: p[:12].hex(),
)
def test_bombs_and_nonsense_end_with_a_clear_error(program: bytes) -> None:
    with pytest.raises(CorruptedPickle, match="the pickle"):
        read(program)


def test_the_number_of_instructions_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_INSTRUCTIONS", 100)
    with pytest.raises(CorruptedPickle, match="more than 100 instructions"):
        read(b"\x80\x02" + b"N0" * 100 + b"N.")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # as outside of tests
def test_a_text_with_a_wrong_escape() -> None:
    assert read(b"S'a\\qb'\n.") == "a\\qb"
