"""Strides as a user writes them."""

import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import strides_from_text


@pytest.mark.parametrize("text", ["8 16,32", "8,16 32", "８,16,32", "8_0"])
def test_strides_that_could_be_misread(text: str) -> None:
    with pytest.raises(UsageError, match=r"^`--onnx-strides` expects .*, found"):
        strides_from_text(text, "--onnx-strides")
    assert strides_from_text(" 8, 16 ,32", "--onnx-strides") == (8, 16, 32)
