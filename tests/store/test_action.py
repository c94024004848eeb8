"""Keys and records: one text for one meaning, and nothing believed when read back."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from store_worker import action

from yolotrt_core.plugin.options import key_material, option, resolve
from yolotrt_core.store.action import (
    Blob,
    Record,
    UnknownSchemaError,
    canonical_json,
    is_output_name,
    key_of_material,
    record_bytes,
    record_from_bytes,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)

# A busy machine is no finding.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _reversed(value: object) -> object:
    """The same JSON value with every object's members in the other order."""
    if isinstance(value, dict):
        return {k: _reversed(v) for k, v in reversed(value.items())}
    if isinstance(value, list):
        return [_reversed(v) for v in value]
    return value


@patient
@given(JSON)
def test_canonical_json_does_not_depend_on_member_order(value: object) -> None:
    assert canonical_json(_reversed(value)) == canonical_json(value)  # type: ignore[arg-type]


@patient
@given(JSON)
def test_canonical_json_is_compact_ascii_that_reads_back(value: object) -> None:
    text = canonical_json(value)  # type: ignore[arg-type]
    assert text.isascii()
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@patient
@given(JSON, JSON)
def test_canonical_json_tells_values_apart(one: object, other: object) -> None:
    # repr of the sorted form is an independent witness: it keeps 1, 1.0 and True apart, as keys must.
    same = repr(_sorted(one)) == repr(_sorted(other))
    assert (canonical_json(one) == canonical_json(other)) == same  # type: ignore[arg-type]


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {k: _sorted(v) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return [_sorted(v) for v in value]
    return value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_canonical_json_refuses_what_json_has_not(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": [bad]})


def test_key_is_pinned() -> None:
    """Changing a key rebuilds every artifact of every user: let this fail first.

    The digest is `sha256sum` over the text that `test_key_text_is_pinned` spells out.
    """
    assert action().key == "258fdda120e757a1322022e2cfab76691f4ef0363faa6c2761256e2f85d69351"


def test_key_text_is_pinned() -> None:
    assert canonical_json(action().material()) == (
        '{"core_sha256":"' + "ef" * 32 + '","inputs":{"source":"' + "cd" * 32 + '"},'
        '"options":{"number":0,"opset":17},'
        '"plugin":{"dist":"yolotrt-core","name":"torch","source_sha256":"' + "ab" * 32 + '","stage_version":1},'
        '"request":{"batch":1,"height":640,"width":640},"schema":1,"stage":"exporter",'
        '"tools":{"torch":"2.9.1"}}'
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "pass"},
        {"options": {"number": 0, "opset": 18}},
        {"options": {"number": 0}},
        {"inputs": {"source": "ce" * 32}},
        {"inputs": {"onnx": "cd" * 32}},
        {"tools": {"torch": "2.9.10"}},
        {"core_sha256": "ee" * 32},
        {"request": {"batch": 2, "height": 640, "width": 640}},
        {"plugin": dataclasses.replace(action().plugin, stage_version=2)},
        {"plugin": dataclasses.replace(action().plugin, source_sha256="aa" * 32)},
    ],
)
def test_every_part_of_an_action_changes_its_key(changes: dict[str, object]) -> None:
    assert action(**changes).key != action().key


def test_number_typed_as_float_has_one_key_however_it_is_written() -> None:
    @dataclasses.dataclass(frozen=True)
    class Options:
        tolerance: float = option(1.0, help="How far apart outputs may be")

    texts = ["1", "1.0", "1e0"]
    materials = [key_material(resolve(Options, "torch", {"tolerance": text}, None), "torch") for text in texts]
    recipe = key_material(resolve(Options, "torch", None, {"tolerance": 1}), "torch")
    assert {canonical_json(dict(m)) for m in [*materials, recipe]} == {'{"tolerance":1.0}'}


def _record() -> Record:
    return Record(
        key=action().key,
        action=action().material(),
        outputs={"nested/model.onnx": Blob("12" * 32, 5)},
        created="2026-01-02T03:04:05+00:00",
        seconds=1.5,
        facts={"nodes": 242, "worst": 1e-6, "names": ["a", None]},
    )


def test_record_survives_storing() -> None:
    assert record_from_bytes(action().key, record_bytes(_record())) == _record()


def test_material_of_a_stored_record_still_hashes_to_its_key() -> None:
    stored = record_from_bytes(action().key, record_bytes(_record()))
    assert key_of_material(stored.action) == action().key


def _changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(record_bytes(_record())), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04N.",
        b"[]",
        b"[" * 100_000,
        _changed(action={}),
        _changed(action=None),
        _changed(outputs=[]),
        _changed(outputs={"../../etc/passwd": {"sha256": "12" * 32, "size": 5}}),
        _changed(outputs={"/etc/passwd": {"sha256": "12" * 32, "size": 5}}),
        _changed(outputs={"a": {"sha256": "12", "size": 5}}),
        _changed(outputs={"a": {"sha256": "12" * 32, "size": "5"}}),
        _changed(outputs={"a": 1}),
        _changed(created=5),
        _changed(seconds=None),
        _changed(seconds=10**400),
        _changed(seconds=True),
        _changed(seconds=math.inf),
        _changed(action={**action().material(), "stage": "pass"}),
        _changed(action={**action().material(), "stage": math.nan}),
    ],
)
def test_corrupted_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        record_from_bytes(action().key, data)


def test_record_of_another_schema_is_not_corrupted() -> None:
    with pytest.raises(UnknownSchemaError, match="schema 2"):
        record_from_bytes(action().key, _changed(schema=2))


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a//b", "a/", "./a", "../a"])
def test_output_names_that_leave_or_blur_their_folder_are_refused(name: str) -> None:
    assert not is_output_name(name)
