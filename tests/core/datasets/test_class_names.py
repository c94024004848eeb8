"""Class names in every form they come in, and the metadata that goes into an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.datasets.class_names import labels_from_file, labels_in_order, numbered_labels
from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import literal, metadata_of
from yolotrt_core.types import BuildRequest, ModelSpec, TensorSpec


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ("a", "b")),
        (("a", 7), ("a", "7")),
        ({1: "b", 0: "a"}, ("a", "b")),
        ({"1": "b", "0": "a"}, ("a", "b")),
        ({0: "a", 2: "c"}, None),
        ({"a": 0}, None),
        ("ab", None),
        (None, None),
        (3, None),
    ],
)
def test_names_in_order(names: Any, expected: tuple[str, ...] | None) -> None:
    assert labels_in_order(names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c"], ("a", "b")),
        (["a"], ("a", "1")),
        ({"1": "b", 7: "h"}, ("0", "b")),
        ((), ("0", "1")),
        (None, None),
        ("ab", None),
    ],
)
def test_as_many_labels_as_classes(names: Any, expected: Any) -> None:
    assert labels_in_order(names, 2) == expected


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.txt", "crack\n\n  big hole \n"),
        ("n.names", "crack\r\nbig hole"),
        ("n.yaml", "names: [crack, big hole]"),
        ("n.yml", "path: x\nnames:\n  1: big hole\n  0: crack\n"),
    ],
)
def test_names_from_files(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(text.encode())
    assert labels_from_file(tmp_path / file) == ("crack", "big hole")


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("n.txt", b"\n \n", "has no class names"),
        ("n.yaml", b"names: 3", "has no class names"),
        ("n.yaml", b"- a\n- b\n", "has no class names"),
        ("n.yaml", b"names: [", "invalid YAML"),
        ("n.yaml", b"names: 2020-13-45", "invalid YAML"),
        ("n.yaml", b"names: " + b"[" * 5000, "invalid YAML"),
        ("n.yaml", b"names: !!python/object/apply:os.system ['true']", "invalid YAML"),
        ("n.txt", b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_files_without_names(file: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(data)
    with pytest.raises(UsageError, match=words):
        labels_from_file(tmp_path / file)
    with pytest.raises(UsageError, match="cannot read"):
        labels_from_file(tmp_path / "none.txt")


def test_metadata_is_read_back_as_it_was_written() -> None:
    image, output = TensorSpec("images", "float32", (2, 3, 64, 96)), TensorSpec("output0", "float32", (2, 9, 7))
    names = ("it's", 'a "quoted" name')
    spec = ModelSpec((image,), (output,), names, (8, 16), provenance={"tool": "1"})
    told = metadata_of(spec, BuildRequest("fp32", 2, 64, 96))
    assert labels_in_order(literal(told["names"])) == names
    assert (literal(told["strides"]), literal(told["stride"]), literal(told["imgsz"])) == ([8, 16], 16, [64, 96])
    assert (told["task"], told["batch"], told["tool"]) == ("detect", "2", "1")


def test_literals_are_never_run() -> None:
    assert literal("__import__('os').getcwd()") is None
    assert literal('{"a": null, "b": true}') == {"a": None, "b": True}
    assert literal("[" * 5000) is None
    assert literal(None) is None
    assert numbered_labels(2) == ("class0", "class1")
