"""Out of memory, in the words of several libraries."""

from __future__ import annotations

import pytest

from yolotrt_core.pipeline.executor import out_of_memory_error
from yolotrt_core.types import BuildRequest, ShapeRange

_REQUEST = BuildRequest("fp16", 4, 320, 640)


@pytest.mark.parametrize(
    "err",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Failed to allocate memory for requested buffer of size 4915200000000"),
    ],
)
def test_it_is_told_from_a_bug(err: Exception) -> None:
    told = out_of_memory_error(err, _REQUEST)
    assert told is not None
    assert told.exit_code == 4
    assert told.message == "out of memory for batch 4 at 320x640"
    assert "`--batch`" in str(told.hint)


def test_of_a_dynamic_engine_the_largest_shape_counts() -> None:
    profiles = (ShapeRange((1, 32, 32), (1, 32, 32), (8, 64, 96)),)
    told = out_of_memory_error(MemoryError(), BuildRequest("fp16", 1, 32, 32, True, profiles))
    assert told is not None
    assert "batch 8 at 64x96" in told.message


def test_other_errors_are_not_its() -> None:
    assert out_of_memory_error(ValueError("an allocation of marks"), _REQUEST) is None
