"""Where an artifact comes from, and which one is nearest to one that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from store_worker import action, content, maker

from yolotrt_core.store.lineage import ABSENT, Difference
from yolotrt_core.store.store import Store
from yolotrt_core.types import Json


def _chain(store: Store, *, opset: int = 17) -> tuple[str, str, str]:
    """Build export, simplify and engine; return their keys."""
    export, _ = store.obtain(action(1), maker(1))
    onnx = {"onnx": export.outputs["model.onnx"].sha256}
    simplify = action(1, stage="pass", inputs=onnx, options={"opset": opset})

    def slim(work: Path) -> Mapping[str, Json]:
        (work / "out" / "model.onnx").write_bytes(b"slim %d" % opset)
        return {}

    slimmed, _ = store.obtain(simplify, slim)
    build = action(1, stage="builder", inputs={"onnx": slimmed.outputs["model.onnx"].sha256})
    engine, _ = store.obtain(build, maker(9))
    return export.key, slimmed.key, engine.key


def test_lineage_leads_to_the_source(store: Store) -> None:
    export, slimmed, engine = _chain(store)
    tree = store.lineage(store.resolve(engine))
    assert tree.record.key == engine
    middle = tree.inputs["onnx"]
    assert not isinstance(middle, str)
    assert middle.record.key == slimmed
    first = middle.inputs["onnx"]
    assert not isinstance(first, str)
    assert first.record.key == export
    assert first.inputs == {"source": "cd" * 32}


def test_lineage_of_a_stage_that_returns_its_input_goes_past_it(store: Store) -> None:
    export, _ = store.obtain(action(1), maker(1))
    same = action(1, stage="pass", inputs={"onnx": export.outputs["model.onnx"].sha256})

    def copy(work: Path) -> Mapping[str, Json]:
        (work / "out" / "model.onnx").write_bytes(content(1, "model"))
        return {}

    record, _ = store.obtain(same, copy)
    source = store.lineage(record).inputs["onnx"]
    assert not isinstance(source, str)
    assert source.record.key == export.key


def test_nearest_says_what_differs(store: Store) -> None:
    store.obtain(action(1), maker(1))
    store.obtain(action(2, options={"number": 5, "opset": 11}), maker(2))
    store.obtain(action(1, stage="pass"), maker(1))
    wanted = action(7, tools={"torch": "2.10.0", "onnx": "1.19"})
    found = store.nearest(wanted)
    assert found is not None
    assert found[0].key == action(1).key
    assert found[1] == (
        Difference("options.number", 1, 7),
        Difference("tools.onnx", ABSENT, "1.19"),
        Difference("tools.torch", "2.9.1", "2.10.0"),
    )
    assert store.nearest(action(1, stage="builder")) is None
    exact = store.nearest(action(1))
    assert exact is not None
    assert exact[1] == ()


def test_nearest_tells_one_from_one_point_nought(store: Store) -> None:
    store.obtain(action(1, options={"tolerance": 1}), maker(1))
    found = store.nearest(action(1, options={"tolerance": 1.0}))
    assert found is not None
    assert [d.path for d in found[1]] == ["options.tolerance"]


def test_what_was_made_from_the_same_is_nearest(store: Store) -> None:
    store.obtain(action(1, inputs={"source": "a" * 64}, options={"height": 1, "width": 1}), maker(1))
    store.obtain(action(2, inputs={"source": "b" * 64}, options={"height": 2, "width": 2}), maker(2))
    found = store.nearest(action(3, inputs={"source": "a" * 64}, options={"height": 2, "width": 2}))
    assert found is not None
    assert [d.path for d in found[1]] == ["options.height", "options.width"]
