"""The values handed between stages survive JSON, and refuse what is not theirs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from yolotrt_core.serialization import from_json, to_json
from yolotrt_core.types import BuildRequest, EngineSpec, Json, ModelSource, ModelSpec, Selection, ShapeRange, TensorSpec

_dims = st.lists(st.one_of(st.integers(1, 9000), st.text("abch", min_size=1, max_size=5)), max_size=4).map(tuple)
_tensors = st.builds(TensorSpec, name=st.text(max_size=8), dtype=st.sampled_from(["float32", "float16"]), shape=_dims)
_anchors = st.lists(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), max_size=3).map(tuple), max_size=3)
_models = st.builds(
    ModelSpec,
    inputs=st.lists(_tensors, max_size=2).map(tuple),
    outputs=st.lists(_tensors, max_size=2).map(tuple),
    labels=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    strides=st.lists(st.integers(1, 64), max_size=3).map(tuple),
    anchors=_anchors.map(tuple),
    provenance=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)


@given(_models)
def test_model_spec_round_trips(spec: ModelSpec) -> None:
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec


def test_engine_spec_round_trips_with_profiles() -> None:
    model = ModelSpec((TensorSpec("images", "float16", ("b", 3, 640, 640)),), (), ("a",), (8, 16, 32))
    spec = EngineSpec(model, "fp16", "tensorrt", {"module": "x"}, (ShapeRange((1, 32, 32), (2, 64, 64), (3, 96, 96)),))
    assert from_json(EngineSpec, json.loads(json.dumps(to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("cls", "good"),
    [
        (Selection, Selection(conf=0.5, classes=(1, 2))),
        (BuildRequest, BuildRequest("int8", 2, 320, 640)),
        (ModelSource, ModelSource(Path("a/b.pt"), "00", "b", (320, 640))),
    ],
)
def test_round_trip_and_refusal_of_unknown_fields(cls: type, good: object) -> None:
    shown = to_json(good)
    assert isinstance(shown, dict)
    assert from_json(cls, shown) == good
    with pytest.raises(ValueError, match="field `surprise` is unknown"):
        from_json(cls, {**shown, "surprise": 1})


@pytest.mark.parametrize("change", [{"precision": "fp12"}, {"batch": "one"}, {"height": 1.5}])
def test_wrong_values_are_refused(change: dict[str, object]) -> None:
    shown = to_json(BuildRequest("fp16", 1, 640, 640))
    assert isinstance(shown, dict)
    with pytest.raises(ValueError, match="expected"):
        from_json(BuildRequest, {**shown, **change})


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number, found an integer that is too large"):
        from_json(Selection, {"conf": 10**400})


def test_a_tuple_of_fixed_length_is_checked() -> None:
    with pytest.raises(ValueError, match="expected 3 items"):
        from_json(ShapeRange, {"min": [1, 2], "opt": [1, 2, 3], "max": [1, 2, 3]})


def test_json_fields_are_left_as_they_are() -> None:
    shown = {"a": [1, None, {"b": 2.5}], "c": "d"}
    assert from_json(_WithJson, {"anything": shown, "named": {"x": [True]}}) == _WithJson(shown, {"x": [True]})


@dataclass
class _WithJson:
    anything: Json
    named: dict[str, Json]


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="is not JSON serializable"):
        to_json({"x": object()})
    assert to_json(replace(Selection(), classes=(3,))) == {
        "conf": 0.25,
        "iou": 0.45,
        "multi_label": False,
        "agnostic": False,
        "classes": [3],
        "max_det": 300,
    }
