"""Contract of postprocessors, see `yolotrt_core.plugin.stages`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.candidates import select
from yolotrt_core.testing.device_head import read_head
from yolotrt_core.testing.stage import StageContract, assert_readable
from yolotrt_core.types import Detections, Geometry, ModelSpec, Selection

_SELECTIONS = (
    Selection(),
    Selection(conf=0.01, iou=0.6, multi_label=True),
    Selection(conf=0.1, iou=0.3, agnostic=True, multi_label=True, max_det=7),
    Selection(conf=0.05, classes=(0,)),
)


class PostprocessorContract(StageContract):
    """A postprocessor; give the fixtures `spec` and `raw`, the output for two images with some boxes in each."""

    kind = "postprocessor"

    @pytest.fixture
    def spec(self) -> ModelSpec:
        raise NotImplementedError("return the ModelSpec of a network with your head")

    @pytest.fixture
    def raw(self) -> Mapping[str, NDArray[Any]]:
        raise NotImplementedError("return that network's output for two images, by output name")

    @pytest.fixture
    def geometry(self, spec: ModelSpec) -> list[Geometry]:
        """Two images of other sizes, fitted into the network's input by the letterbox."""
        from yolotrt_core.inference.letterbox import geometry
        from yolotrt_core.types import without_channels

        _, height, width = (int(side) for side in without_channels(spec.inputs[0].shape, spec.layout))
        return [geometry((height * 2, width), (height, width)), geometry((height // 2, width), (height, width))]

    def test_decodes_the_head_it_names(self, stage: Any, spec: ModelSpec) -> None:
        assert spec.head in stage.heads
        if stage.columns_before_classes is not None:
            assert spec.outputs[0].shape[-1] == stage.columns_before_classes + len(spec.labels)

    def test_gives_sound_detections(self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any) -> None:
        given = {name: values.copy() for name, values in raw.items()}
        found = stage.decode(raw, spec, geometry, Selection(), options)
        assert all(np.array_equal(raw[name], given[name]) for name in given), "decoding may not change its input"
        assert len(found) == len(geometry)
        assert all(len(each) for each in found), "`raw` should hold boxes"
        for each, placed in zip(found, geometry, strict=True):
            self.assert_sound(each, placed, spec)
        again = stage.decode(raw, spec, geometry, Selection(), options)
        for one, other in zip(found, again, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)

    def test_obeys_the_selection(self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any) -> None:
        every = stage.decode(raw, spec, geometry, Selection(), options)
        assert not any(len(each) for each in stage.decode(raw, spec, geometry, Selection(conf=1.0), options))
        for each, all_of in zip(stage.decode(raw, spec, geometry, Selection(max_det=1), options), every, strict=True):
            assert len(each) == 1
            assert each.truncated == len(all_of) - 1
            np.testing.assert_array_equal(each.boxes, all_of.boxes[:1])
        wanted = int(every[0].class_ids[0])
        for each in stage.decode(raw, spec, geometry, Selection(classes=(wanted,)), options):
            assert set(each.class_ids.tolist()) <= {wanted}

    def test_refuses_another_head(self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any) -> None:
        name, values = next(iter(raw.items()))
        for wrong in ({"other": values}, {name: values[..., :-1]}, {name: values[0]}, {name: values.astype(np.int32)}):
            with pytest.raises(UsageError) as told:
                stage.decode(wrong, spec, geometry, Selection(), options)
            assert_readable(told.value)

    @pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
    def test_a_device_program_reads_what_is_decoded(
        self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any, damaged: bool, tmp_path: Path
    ) -> None:
        """A runner selects from what the `Head` reads as `yolotrt_core.inference.candidates.select` does."""
        if not stage.decodes_on_device:
            return
        program = stage.device_program(spec)
        assert program.classes == len(spec.labels)
        values = raw[program.output].astype(np.float32)
        if damaged:
            random = np.random.default_rng(0)
            places = random.choice(values.size, (3, max(1, values.size // 60)), replace=False)
            for wrong, at in zip((np.nan, np.inf, -np.inf), places, strict=True):
                values.ravel()[at] = wrong
        read = read_head(program, values, tmp_path)
        for selection in _SELECTIONS:
            found = stage.decode({**raw, program.output: values}, spec, geometry, selection, options)
            for image, (each, placed) in enumerate(zip(found, geometry, strict=True)):
                gate = read.objectness[image]
                rows = np.flatnonzero((gate > np.float32(selection.conf)) & np.isfinite(gate))
                boxes, scores = read.boxes[image][rows], read.scores[image][rows]
                wanted, _ = select(boxes, scores, placed, selection, rows)
                assert each.truncated == wanted.truncated
                for name in ("boxes", "scores", "class_ids"):
                    np.testing.assert_array_equal(getattr(each, name), getattr(wanted, name), name)

    def assert_sound(self, found: Detections, placed: Geometry, spec: ModelSpec) -> None:
        """Check dtypes, order and bounds of one image's detections."""
        dtypes = [str(each.dtype) for each in (found.boxes, found.scores, found.class_ids)]
        assert dtypes == ["float32", "float32", "int64"]
        assert found.boxes.shape == (len(found), 4)
        assert (np.diff(found.scores) <= 0).all()
        assert ((found.class_ids >= 0) & (found.class_ids < len(spec.labels))).all()
        height, width = placed.source
        assert (found.boxes >= 0).all()
        assert (found.boxes <= np.array([width, height, width, height])).all()
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
