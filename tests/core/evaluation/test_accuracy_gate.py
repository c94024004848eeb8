"""The gate: agreement worked out by hand, and builds that are handed out or held back."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from arrays import detections
from fake_stages import FakeBuilder, FakeExporter, FakePass, FakePostprocessor, FakeSession, fake_plugin
from yolotrt_core.api import Detector, Engine, build_engine
from yolotrt_core.errors import GateError, UsageError
from yolotrt_core.evaluation import gate_facts
from yolotrt_core.evaluation.agreement import compare_detections
from yolotrt_core.evaluation.predictions import predict
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.options import option
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import ONNX_FILE, Availability
from yolotrt_core.store.code_digest import code_digest
from yolotrt_core.store.store import Store
from yolotrt_core.types import Detections, Masks, Selection

A, B, FAR = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]
LINE, POINT, TURNED = [0, 2, 0, 9], [3, 3, 3, 3], [5, 5, 4, 4]


@pytest.mark.parametrize(
    ("one", "other", "share", "drift"),
    [
        (detections((A, 0.9, 0)), detections((A, 0.8, 0)), 1.0, 0.1),
        (detections((A, 0.9, 0)), detections((B, 0.9, 0)), 1.0, 0.0),
        (detections((A, 0.9, 0)), detections((A, 0.9, 1)), 0.0, 0.0),
        (detections((A, 0.9, 0)), detections((FAR, 0.9, 0)), 0.0, 0.0),
        (detections((A, 0.9, 0), (FAR, 0.5, 0)), detections((A, 0.9, 0)), 2 / 3, 0.0),
        (detections((A, 0.9, 0)), detections((A, 0.9, 0), (B, 0.7, 0)), 2 / 3, 0.0),  # one pair for each box
        # Boxes without area, by a side of 0 or below, agree with themselves and what is a fraction of a pixel apart.
        (detections((LINE, 0.9, 0), (POINT, 0.8, 0)), detections((LINE, 0.9, 0), (POINT, 0.7, 0)), 1.0, 0.05),
        (detections((TURNED, 0.9, 0)), detections((TURNED, 0.9, 0)), 1.0, 0.0),
        (detections((LINE, 0.9, 0)), detections((POINT, 0.9, 0)), 0.0, 0.0),
        (detections((LINE, 0.9, 0)), detections((A, 0.9, 0)), 0.0, 0.0),
        (detections((LINE, 0.9, 0)), detections((LINE, 0.9, 1)), 0.0, 0.0),
        (detections((LINE, 0.9, 0)), detections(([0.1, 2, 0.1, 9.1], 0.9, 0)), 1.0, 0.0),
        (detections((LINE, 0.9, 0)), detections(([2, 2, 2, 9], 0.9, 0)), 0.0, 0.0),
        (detections(), detections(), 1.0, 0.0),
        (detections(), detections((A, 0.9, 0)), 0.0, 0.0),
        (detections((A, 0.9, 0)), detections(), 0.0, 0.0),
    ],
)
def test_agreement(one: Detections, other: Detections, share: float, drift: float) -> None:
    result = compare_detections([one], [other])
    assert result.share == pytest.approx(share)
    assert result.drift == pytest.approx(drift, abs=1e-6)


def test_agreement_adds_up_over_images() -> None:
    result = compare_detections(
        [detections((A, 0.9, 0)), detections((A, 0.5, 0))], [detections((A, 0.7, 0)), detections()]
    )
    assert (result.expected, result.found, result.matched) == (2, 1, 1)
    assert result.share == pytest.approx(2 / 3)


def test_masks_without_pixels_agree() -> None:
    """They have no IoU; a mask with pixels is another one."""
    full, empty = (
        Masks((12, 12), np.array([[0, 0, 10, 10]], np.int32), (np.packbits(np.full((10, 10), value), axis=1),))
        for value in (True, False)
    )
    box = detections((A, 0.9, 0))
    for one, other, matched in ((empty, empty, 1), (full, full, 1), (empty, full, 0), (full, empty, 0)):
        result = compare_detections([replace(box, masks=one)], [replace(box, masks=other)])
        assert result.matched == matched


class _Lossy(FakePass):
    """Multiplies the network, and so every score, by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.stage_version = int(factor * 1e6)  # so that another factor is another artifact

    def apply(self, model: Any, calibration: Any, request: Any, options: Any, out: Path) -> Any:
        (out / ONNX_FILE).write_text(json.dumps(json.loads(model.path.read_text()) * self.factor))
        return model.spec, {}


class _Elsewhere(FakeBuilder):
    """A builder whose engines cannot run here."""

    name = "elsewhere"
    priority = 40

    def runnable(self) -> Availability:
        return Availability(False, "no such device")

    def open(self, engine: Path, spec: Any, options: Any, side_cache: Any) -> FakeSession:
        raise AssertionError("cannot run here")


class _OnGpu(FakeBuilder):
    """A builder whose engines answer by where they run: all is well on every GPU but the broken one."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu

    def place(self, options: Any) -> Mapping[str, str]:
        return {"gpu": self.gpu}

    def open(self, engine: Path, spec: Any, options: Any, side_cache: Any) -> FakeSession:
        wrong = self.gpu == "broken" and spec.precision == "fp16"
        return FakeSession(0.0 if wrong else json.loads(engine.read_text()), spec)


class _Thresholded(FakePostprocessor):
    """Keeps a box only if it scores more than asked for."""

    def decode(self, raw: Any, spec: Any, geometry: Any, selection: Any, options: Any) -> list[Detections]:
        found = super().decode(raw, spec, geometry, selection, options)
        return [d if d.scores[0] > selection.conf else detections() for d in found]


def _stages(factor: float, *more: Any, own: FakeBuilder | None = None) -> Registry:
    builders = [own or FakeBuilder(), *more]
    return Registry.of(fake_plugin(passes=[_Lossy(factor)], builders=builders, postprocessors=[_Thresholded()]))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four grey images: the fake network scores each with its mean."""
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for number in range(4):
        frame = np.full((32, 64, 3), 200 + number, np.uint8)
        assert cv2.imwrite(str(tmp_path / "set" / "images" / f"{number}.png"), frame)
    return tmp_path / "set"


def _build(registry: Registry, store: Store, tmp_path: Path, precision: str = "fp16", **settings: Any) -> Engine:
    weights = tmp_path / "model.txt"
    weights.write_text("1 1")
    wanted = BuildSettings(weights=weights, imgsz=(32, 64), precision=precision, **settings)  # type: ignore[arg-type]
    return build_engine(wanted, store=store, registry=registry, out=tmp_path / "out")


def test_a_faithful_engine_is_handed_out_with_its_verdict(store: Store, tmp_path: Path) -> None:
    engine = _build(_stages(0.99), store, tmp_path)
    assert engine.gate is not None
    assert engine.gate.passed
    assert engine.gate.facts["pictures_from"] == "the bundled image"
    assert engine.gate.facts["ran"] == "the engine"
    again = _build(_stages(0.99), store, tmp_path)
    assert again.gate is not None
    assert (again.gate.key, again.gate.from_cache) == (engine.gate.key, True)


def test_an_engine_that_finds_nothing_is_held_back_and_kept(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(GateError, match="0 of 4 fp32 boxes matched") as refused:
        _build(_stages(0.1), store, tmp_path, eval_data=images / "images")
    assert refused.value.exit_code == 6
    assert not (tmp_path / "out").exists()
    key = store.refs()["model-fp16-onnxruntime-refused"]
    assert store.find(key) is not None
    assert key[:12] in str(refused.value.hint)
    with pytest.raises(GateError):  # from the record, without running anything
        _build(_stages(0.1), store, tmp_path, eval_data=images / "images")


def _grey(images: Path, value: int) -> None:
    for file in (images / "images").iterdir():
        assert cv2.imwrite(str(file), np.full((32, 64, 3), value, np.uint8))


def test_comparing_nothing_is_a_refusal(store: Store, tmp_path: Path, images: Path) -> None:
    _grey(images, 0)  # scores of 0 on either side
    with pytest.raises(GateError, match="nothing was compared: no detections in either engine or fp32") as refused:
        _build(_stages(0.99), store, tmp_path, eval_data=images / "images")
    assert "images with objects of the model's classes" in str(refused.value.hint)
    assert "--precision" not in str(refused.value.hint)
    for number in range(4):  # labels of objects that the fp32 model does not find
        (images / "labels" / f"{number}.txt").write_text("0 0.5 0.5 1 1\n")
    with pytest.raises(GateError, match="the fp32 model detects none of the labelled objects"):
        _build(_stages(0.99), store, tmp_path, eval_data=images)


@pytest.mark.parametrize("factor", [0.99, 0.1])
def test_scores_below_the_threshold_are_compared(factor: float, store: Store, tmp_path: Path, images: Path) -> None:
    _grey(images, 40)  # a score of 40 / 255
    if factor < 0.5:
        with pytest.raises(GateError, match=r"0 of 4 fp32 boxes matched above a confidence of 0\.0784"):
            _build(_stages(factor), store, tmp_path, eval_data=images / "images")
        return
    engine = _build(_stages(factor), store, tmp_path, eval_data=images / "images")
    assert engine.gate is not None
    assert engine.gate.facts["conf"] == pytest.approx(40 / 255 / 2)
    assert "4 of 4 fp32 boxes matched above a confidence of 0.0784" in engine.gate.text


def test_scores_that_cannot_be_are_refused(store: Store, tmp_path: Path, images: Path) -> None:
    """As when other columns are read as classes: without labels nothing else would show it."""

    class Unbounded(_Thresholded):
        def decode(self, raw: Any, spec: Any, geometry: Any, selection: Any, options: Any) -> list[Detections]:
            found = super().decode(raw, spec, geometry, selection, options)
            return [replace(each, scores=each.scores * 341) for each in found]

    registry = Registry.of(fake_plugin(passes=[_Lossy(0.9999)], postprocessors=[Unbounded()]))
    with pytest.raises(GateError, match=r"scores up to 271.* expected 0 to 1") as refused:
        _build(registry, store, tmp_path, eval_data=images / "images", flags={"gate": {"drift": "1"}})
    assert "`--onnx-columns`" in str(refused.value.hint)


def test_the_advice_names_another_precision(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(GateError) as refused:
        _build(_stages(0.1), store, tmp_path, eval_data=images / "images")
    hint = str(refused.value.hint)
    assert "`--precision bf16`" in hint
    assert "`--precision fp16`" not in hint
    assert "calibrator" not in hint
    lost = {"by": "map50_95", "fp32": 0.5, "reference": "fp32", "pictures_from": "4 evaluation images with labels"}
    assert "`--precision fp16`" in gate_facts.advice(lost, "bf16")
    assert "`--calibrator`" in gate_facts.advice(lost, "int8")


def test_how_much_was_compared_is_in_the_record(store: Store, tmp_path: Path, images: Path) -> None:
    engine = _build(_stages(0.99), store, tmp_path, eval_data=images / "images")
    assert engine.gate is not None
    assert engine.gate.facts["compared"] == 8  # a box of either side on each of four images
    assert "4 of 4 fp32 boxes matched, 4 boxes in the engine" in engine.gate.text
    one = _build(_stages(0.99), store, tmp_path)
    assert one.gate is not None
    assert "1 of 1 fp32 box matched, 1 box in the engine" in one.gate.text


def test_an_engine_is_judged_again_on_another_gpu(store: Store, tmp_path: Path, images: Path) -> None:
    first = _build(_stages(0.99, own=_OnGpu("good")), store, tmp_path, eval_data=images / "images")
    assert first.gate is not None
    with pytest.raises(GateError, match="0 of 4 fp32 boxes matched"):
        _build(_stages(0.99, own=_OnGpu("broken")), store, tmp_path, eval_data=images / "images")
    again = _build(_stages(0.99, own=_OnGpu("good")), store, tmp_path, eval_data=images / "images")
    assert again.gate is not None
    assert (again.gate.key, again.gate.from_cache) == (first.gate.key, True)


def _decoded(postprocessor: Any) -> Registry:
    return Registry.of(fake_plugin(passes=[_Lossy(0.99)], postprocessors=[postprocessor]))


def test_an_edited_postprocessor_is_judged_anew(
    store: Store, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "decoding_of_the_test.py"
    verdicts = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        module.write_text(text)
        code_digest.cache_clear()
        head = _Thresholded()
        head.sources = ("decoding_of_the_test",)
        verdicts.append(_build(_decoded(head), store, tmp_path, eval_data=images / "images").gate)
    first, edited, back = verdicts
    assert first is not None and edited is not None and back is not None
    assert (edited.from_cache, back.from_cache) == (False, True)
    assert first.key != edited.key
    assert first.key == back.key


@dataclass(frozen=True)
class Reach:
    share: float = option(1.0, help="How much of the image a box covers")


class Other(_Thresholded):
    name = "otherhead"
    Options = Reach


def test_another_postprocessor_or_option_of_it_is_judged_anew(store: Store, tmp_path: Path, images: Path) -> None:
    keys = set()
    for head, flags in ((_Thresholded(), {}), (Other(), {}), (Other(), {"otherhead": {"share": "0.5"}})):
        verdict = _build(_decoded(head), store, tmp_path, eval_data=images / "images", flags=flags).gate
        assert verdict is not None
        assert not verdict.from_cache
        assert isinstance(verdict.facts["fp32_boxes"], int)
        keys.add(verdict.key)
    assert len(keys) == 3


def test_predictions_are_of_one_postprocessor_and_its_options(store: Store, tmp_path: Path, images: Path) -> None:
    weights = tmp_path / "model.txt"
    weights.write_text("1 1")
    files = sorted((images / "images").iterdir())
    keys = []
    for head, flags in (
        (_Thresholded(), {}),
        (Other(), {}),
        (Other(), {"otherhead": {"share": "0.5"}}),
        (_Thresholded(), {}),
    ):
        registry = _decoded(head)
        settings: dict[str, Any] = {"precision": "fp32", "imgsz": (32, 64), "flags": flags}
        with Detector.open(weights, store=store, registry=registry, **settings) as detector:
            made = predict(detector, files, Selection(), store=store, registry=registry)
        assert made.from_cache == (made.record.key in keys)
        keys.append(made.record.key)
    assert len(set(keys)) == 3
    assert keys[3] == keys[0]


def test_other_labels_are_judged_anew(store: Store, tmp_path: Path, images: Path) -> None:
    class Labelled(FakeExporter):
        labels = ("thing",)

        def export(self, *given: Any) -> Any:
            return replace(super().export(*given), labels=self.labels)

    keys = set()
    for version, labels in enumerate((("thing",), ("other",)), start=1):
        exporter = Labelled()
        exporter.labels, exporter.stage_version = labels, version
        brought = {"exporters": [exporter], "passes": [_Lossy(0.99)], "postprocessors": [_Thresholded()]}
        engine = _build(Registry.of(fake_plugin(**brought)), store, tmp_path, eval_data=images / "images")
        assert engine.gate is not None
        assert not engine.gate.from_cache
        keys.add(engine.gate.key)
    assert len(keys) == 2


def test_it_can_be_handed_out_all_the_same(store: Store, tmp_path: Path) -> None:
    engine = _build(_stages(0.1), store, tmp_path, flags={"gate": {"check": "off"}})
    assert engine.gate is None
    assert engine.path.is_file()


def test_scores_that_drift_are_held_back(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(GateError, match=r"score difference 0\.15"):
        _build(_stages(0.8), store, tmp_path, eval_data=images / "images")
    passed = _build(_stages(0.8), store, tmp_path, eval_data=images / "images", flags={"gate": {"drift": "0.3"}})
    assert passed.gate is not None
    assert passed.gate.passed


def test_fp32_is_not_judged(store: Store, tmp_path: Path) -> None:
    assert _build(_stages(0.1), store, tmp_path, precision="fp32").gate is None


def test_an_engine_that_cannot_run_here_is_judged_by_its_graph(store: Store, tmp_path: Path, images: Path) -> None:
    registry = _stages(0.99, _Elsewhere())
    engine = _build(registry, store, tmp_path, builder="elsewhere")
    assert engine.gate is not None
    assert engine.gate.facts["ran"] == "its typed ONNX in onnxruntime"
    with pytest.raises(GateError, match="evaluated with its typed ONNX in onnxruntime"):
        _build(_stages(0.1, _Elsewhere()), store, tmp_path, builder="elsewhere", eval_data=images / "images")


def test_with_labels_the_loss_of_map_decides(store: Store, tmp_path: Path, images: Path) -> None:
    for number in range(4):
        (images / "labels" / f"{number}.txt").write_text("0 0.5 0.5 1 1\n")
    engine = _build(_stages(0.5), store, tmp_path, eval_data=images)
    assert engine.gate is not None
    assert engine.gate.facts["by"] == "map50_95"
    assert (engine.gate.facts["drop_low"], engine.gate.facts["drop_high"]) == (None, None)  # of 4 images
    assert engine.gate.facts["drop"] == 0
    with pytest.raises(GateError, match=r"mAP50-95 0\.0000, fp32 1\.0000, loss 1\.0000 \(maximum 0\.2\)"):
        _build(_stages(1e-4), store, tmp_path, eval_data=images, max_drop=0.2)


class _Masked(FakeExporter):
    def export(self, *given: Any) -> Any:
        return replace(super().export(*given), task="segment")


class _Shrinking(_Thresholded):
    """Gives a box its mask: as high as the image, and wide by the score up to the whole of it at 0.75."""

    def decode(self, raw: Any, spec: Any, geometry: Any, selection: Any, options: Any) -> list[Detections]:
        found = super().decode(raw, spec, geometry, selection, options)
        return [replace(d, masks=self._mask(d, placed.source)) for d, placed in zip(found, geometry, strict=True)]

    def _mask(self, found: Detections, size: tuple[int, int]) -> Masks:
        height, width = size
        windows = [[0, 0, min(round(width * score / 0.75), width), height] for score in found.scores.tolist()]
        bitmaps = tuple(np.packbits(np.ones((height, x2), bool), axis=1) for _, _, x2, _ in windows)
        return Masks(size, np.array(windows, np.int32).reshape(-1, 4), bitmaps)


def _masked(factor: float) -> Registry:
    brought = {"exporters": [_Masked()], "passes": [_Lossy(factor)], "postprocessors": [_Shrinking()]}
    return Registry.of(fake_plugin(**brought))


def test_the_larger_loss_of_boxes_and_masks_decides(store: Store, tmp_path: Path, images: Path) -> None:
    """Boxes stay; masks are half as wide, so that their overlap of 0.52 counts at one of ten thresholds."""
    for number in range(4):
        (images / "labels" / f"{number}.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    with pytest.raises(GateError) as refused:
        _build(_masked(0.5), store, tmp_path, eval_data=images)
    assert "box mAP50-95 1.0000, fp32 1.0000, loss 0.0000; mask mAP50-95 0.1000, fp32 1.0000" in str(refused.value)
    passed = _build(_masked(0.5), store, tmp_path, eval_data=images, max_drop=0.91).gate
    assert passed is not None
    assert passed.facts["decided_by"] == "mask"
    assert passed.facts["drop"] == pytest.approx(0.9)
    box, mask = passed.facts["box"], passed.facts["mask"]
    assert isinstance(box, dict) and isinstance(mask, dict)
    assert (box["drop"], mask["fp32"], mask["lowered"]) == (0, 1, pytest.approx(0.1))
    gone = _build(_masked(1e-4), store, tmp_path, eval_data=images, max_drop=1).gate  # no box at all
    assert gone is not None
    assert gone.facts["decided_by"] == "box"  # of equal losses


def test_labels_without_masks_decide_by_boxes(store: Store, tmp_path: Path, images: Path) -> None:
    for number in range(4):
        (images / "labels" / f"{number}.txt").write_text("0 0.5 0.5 1 1\n")
    gate = _build(_masked(0.5), store, tmp_path, eval_data=images).gate
    assert gate is not None
    assert (gate.facts["mask"], gate.facts["drop"]) == (None, 0)
    assert "labels without masks" in gate.text


def test_without_labels_masks_have_to_agree(store: Store, tmp_path: Path, images: Path) -> None:
    given: dict[str, Any] = {"eval_data": images / "images", "flags": {"gate": {"drift": "1"}}}
    assert _build(_masked(0.6), store, tmp_path, **given).gate is not None
    with pytest.raises(GateError, match="0 of 4 fp32 boxes matched, 4 boxes in the engine"):
        _build(_masked(0.4), store, tmp_path, **given)


def test_classes_and_missing_labels_are_as_the_user_says(
    store: Store, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Boxes of both classes lie in the last two images, so each map is another truth and another result."""
    (images / "set.yaml").write_text("val: images\nnames: [one, two]\n")
    for number in (2, 3):
        (images / "labels" / f"{number}.txt").write_text(f"{number - 2} 0.5 0.5 1 1\n")
    given: dict[str, Any] = {"eval_data": images / "set.yaml", "max_drop": 0.2}
    with pytest.raises(UsageError, match="2 classes with boxes are missing in the model, the first `one`"):
        _build(_stages(0.5), store, tmp_path, **given)
    keys = set()
    with caplog.at_level(logging.INFO):
        for told in ({"one": "thing", "two": "-"}, {"one": "-", "two": "thing"}, {"one": "thing", "two": "thing"}):
            gate = _build(_stages(0.5), store, tmp_path, class_map=told, **given).gate
            assert gate is not None
            assert gate.facts["compared"] == list(told.values()).count("thing")
            keys.add(gate.key)
    assert len(keys) == 3
    assert "eval data 4 images, 2 boxes; 2 images without objects, 2 of them without a label file" in caplog.text
    (images / "labels" / "3.txt").unlink()
    with pytest.raises(UsageError, match=r"3 of 4 images of .* have no label file"):
        _build(_stages(0.5), store, tmp_path, class_map=told, **given)
    gate = _build(_stages(0.5), store, tmp_path, class_map=told, allow_unlabeled=True, **given).gate
    assert gate is not None
    assert gate.facts["compared"] == 1


def test_max_drop_without_labels(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(UsageError, match="no labels for the 4 images"):
        _build(_stages(0.99), store, tmp_path, eval_data=images, max_drop=0.1)
    with pytest.raises(UsageError, match="`--max-drop` needs labelled images"):
        _build(_stages(0.99), store, tmp_path, max_drop=0.1)


def test_changed_images_are_judged_anew(
    store: Store, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _build(_stages(0.99), store, tmp_path, eval_data=images / "images")
    shutil.copy(images / "images" / "0.png", images / "images" / "9.png")
    with caplog.at_level(logging.INFO):
        second = _build(_stages(0.99), store, tmp_path, eval_data=images / "images")
    assert first.gate is not None
    assert second.gate is not None
    assert first.gate.key != second.gate.key
    assert "5 of 5 fp32 boxes matched" in caplog.text


def test_the_hint_of_a_refusal_names_images_where_there_were_none(store: Store, tmp_path: Path, images: Path) -> None:
    registry = Registry.of(
        fake_plugin(passes=[_Lossy(0.5)])
    )  # any score counts, so a single box can differ by too much
    for given, told in (({}, True), ({"eval_data": images / "images"}, False)):
        with pytest.raises(GateError) as refused:
            _build(registry, store, tmp_path, **given)
        assert ("your own images with `--eval-data`" in str(refused.value.hint)) == told
        assert "`--gate-check off`" in str(refused.value.hint)
