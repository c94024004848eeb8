"""TensorRT's cache text, against lines that TensorRT itself wrote."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from yolotrt_core.calibration.ranges import amax_of_int8_scale, e4m3_scale, int8_scale
from yolotrt_core.calibration.tensorrt_cache import cache_from_ranges, is_cache, parse_cache, version_number
from yolotrt_core.errors import UsageError


def test_a_published_line_is_read() -> None:
    """`3c010a14` is what TensorRT writes for an input of 0..1: 0.00787594."""
    cache = parse_cache("TRT-8601-EntropyCalibration2\ninput_1:0: 3c010a14\na: b: 3c000000\nzero: 00000000\n", "x")
    assert (cache.version, cache.algorithm) == (8601, "EntropyCalibration2")
    assert cache.scales == {"input_1:0": pytest.approx(0.00787594, rel=1e-6), "a: b": 2.0**-7}


@pytest.mark.parametrize(
    ("version", "number"), [("8.6.1", 8601), ("10.3.0", 100300), ("10.16.1.11", 101601), ("10.3", 100300)]
)
def test_versions(version: str, number: int) -> None:
    assert version_number(version) == number


@pytest.mark.parametrize("text", ["ten", "10", "9" * 5000 + ".0"])
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(UsageError, match=rf"expected a TensorRT version such as 10\.3\.0, found `{text}`"):
        version_number(text)


@given(st.floats(1e-4, 1e6))
def test_writing_and_reading_back_keeps_every_bit(amax: float) -> None:
    scale = int8_scale(amax)
    assert struct.unpack("<f", struct.pack("<f", scale))[0] == scale
    text = cache_from_ranges({"a": amax}, 100300, "MinMaxCalibration")
    assert is_cache(text)
    read = parse_cache(text, "x").scales["a"]
    assert read == scale
    assert int8_scale(amax_of_int8_scale(read)) == scale
    assert cache_from_ranges({"a": amax_of_int8_scale(read)}, 100300, "MinMaxCalibration") == text


@given(st.floats(1e-2, 1e6))
def test_a_scale_is_within_half_a_bit_of_half_precision(amax: float) -> None:
    assert int8_scale(amax) == pytest.approx(amax / 127, rel=2.0**-11)
    assert e4m3_scale(amax) == pytest.approx(amax / 448, rel=2.0**-11 if amax > 1 else 2.0**-8)


def test_a_tiny_range_still_has_a_scale() -> None:
    assert int8_scale(1e-30) == 2.0**-24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found ``"),
        ("nonsense\n", "found `nonsense`"),
        ("TRT-8601-EntropyCalibration2\nimages 3c010a14", "line 2: expected"),
        ("TRT-8601-EntropyCalibration2\nimages: 3c01", "line 2: expected"),
        ("TRT-8601-EntropyCalibration2\nimages: bc010a14", "scale of `images` is -0.0"),
        ("TRT-8601-EntropyCalibration2\nimages: 7fc00000", "scale of `images` is nan"),
    ],
)
def test_what_is_no_cache(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_cache(text, "some.cache")
