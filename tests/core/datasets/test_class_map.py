"""Whose class is whose: by name, as the user says, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolotrt_core.datasets.class_map import DataClass, class_map_from, match_classes
from yolotrt_core.errors import UsageError

WHERE = Path("set")


def _classes(*names: str | None, empty: tuple[int, ...] = (), first: int = 0) -> list[DataClass]:
    """Classes with the ids `first`, `first` + 1, ...; those at `empty` have no boxes."""
    return [DataClass(first + n, name, 0 if n in empty else 5) for n, name in enumerate(names)]


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (_classes("cat", "dog"), ("cat", "dog"), {0: 0, 1: 1}),
        (_classes("dog", "cat"), ("cat", "dog"), {0: 1, 1: 0}),
        (_classes("dog"), ("cat", "dog"), {0: 1}),
        (_classes("dog", first=18), ("cat", "dog"), {18: 1}),
        (_classes("gear", "helmet", empty=(0,)), ("helmet", "vest"), {1: 0}),
        (_classes("helmet", "helmet", empty=(0,)), ("helmet", "vest"), {0: 0, 1: 0}),
        (_classes("Hard-Hat", " safety_vest "), ("hard hat", "safety vest"), {0: 0, 1: 1}),
        (_classes("Cat", "cat", empty=(0,)), ("cat", "dog"), {1: 0}),
        (_classes("cat", "Cat", empty=(0,)), ("cat", "dog"), {0: 0, 1: 0}),
        (_classes("a", "a"), ("a", "a"), {0: 0, 1: 1}),  # the same list
        (_classes("2", "0", "1"), ("0", "1", "2"), {0: 2, 1: 0, 2: 1}),  # digits as names
    ],
)
def test_classes_are_matched_by_name(
    classes: list[DataClass], labels: tuple[str, ...], expected: dict[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    assert match_classes(classes, labels, WHERE) == expected
    assert "class ids" not in caplog.text


@pytest.mark.parametrize(
    ("names", "labels", "side"),
    [
        (("cat", "dog"), ("class0", "class1"), "model"),
        (("cat", "dog"), ("0", "1"), "model"),
        ((None, None), ("cat", "dog"), "data set"),
        (("class0", "class1"), ("cat", "dog"), "data set"),
    ],
)
def test_classes_are_taken_in_order_where_one_side_has_no_names(
    names: tuple[str | None, ...], labels: tuple[str, ...], side: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert match_classes(_classes(*names, first=1), labels, WHERE) == {1: 0, 2: 1}
    assert f"the {side} has no class names: the class ids of `set` are taken as the model's" in caplog.text


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (_classes("cat", "cow"), ("cat", "dog")),  # one name differs
        (_classes("katze", "hund"), ("cat", "dog")),  # all names differ
        (_classes("hardhat"), ("helmet",)),  # a single class
        (_classes("cat", "dog", "cow"), ("cat", "dog")),  # one more, with boxes
        (_classes("Cat", "cat"), ("cat", "dog")),  # two for one
        (_classes("CAT", "Cat"), ("cat", "dog")),
        (_classes("Cat", "dog"), ("cat", "CAT")),  # one for two
        (_classes("a", "a", "b"), ("a", "a")),  # a name that two classes of the model have
        (_classes("cat", None), ("cat", "dog")),
        ([*_classes("root", "helmet", empty=(0, 1)), DataClass(2, "cone", 1)], ("helmet", "vest")),
    ],
)
def test_what_is_not_by_name_is_refused_with_both_sides(classes: list[DataClass], labels: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="cannot match the classes of `set` with the model's: ") as refused:
        match_classes(classes, labels, WHERE)
    hint = str(refused.value.hint)
    assert "--class-map" in hint
    assert "data set  " in hint
    for c in classes:
        assert not c.boxes or c.name is None or f"{c.id} {c.name}" in hint


def test_the_table_and_the_example_of_a_refusal() -> None:
    with pytest.raises(UsageError, match="1 class with boxes is missing in the model, `hard hat`") as refused:
        match_classes(_classes("vest", "hard hat"), ("helmet", "vest"), WHERE)
    assert str(refused.value.hint).splitlines() == [
        "pass `--class-map 'hard hat=NAME'` ('hard hat=-' excludes its boxes), or use the data set that the model "
        "was trained for",
        "  data set    boxes  model",
        "  1 hard hat      5  ?",
        "  0 vest          5  1 vest",
        "                     0 helmet",
    ]


def test_the_order_is_not_taken_where_something_contradicts_it() -> None:
    with pytest.raises(UsageError, match="the model has no class names, and there are 3"):
        match_classes(_classes("a", "b"), ("class0", "class1", "class2"), WHERE, by_order="there are 3")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"cow": "dog"}, {0: 0, 1: 1}),
        ({"cow": "1"}, {0: 0, 1: 1}),
        ({"1": "dog"}, {0: 0, 1: 1}),
        ({"COW": "Dog"}, {0: 0, 1: 1}),
        ({"cow": "-"}, {0: 0, 1: None}),
        ({"cow": "cat"}, {0: 0, 1: 0}),  # two classes in one
        ({"cow": "cat", "cat": "dog"}, {0: 1, 1: 0}),  # against the names
    ],
)
def test_the_user_says_which_is_which(told: dict[str, str], expected: dict[int, int | None]) -> None:
    assert match_classes(_classes("cat", "cow"), ("cat", "dog"), WHERE, told) == expected


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"caw": "dog"}, "`--class-map` names `caw`, which `set` does not have"),
        ({"cow": "dug"}, "`--class-map` names `dug`, which the model does not have"),
        ({"cow": "2"}, "`--class-map` names `2`, which the model does not have"),
        ({"cat": "dog"}, "1 class with boxes is missing in the model, `cow`"),
    ],
)
def test_a_map_that_does_not_fit(told: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        match_classes(_classes("cat", "cow"), ("cat", "dog"), WHERE, told)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.yaml", "cow: dog\n'a=b, c': 3\n"),
        ("m.json", json.dumps({"cow": "dog", "a=b, c": 3})),
        ("m.csv", 'cow,dog\r\n"a=b, c",3\r\n'),
        ("m.csv", '\ufeffcow,dog\r\n"a=b, c",3\r\n'),
    ],
)
def test_maps_in_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert class_map_from(str(tmp_path / name)) == {"cow": "dog", "a=b, c": "3"}


def test_maps_in_lines_flags_and_recipes(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("# a comment\ncow = dog\n\nbull=-\n")
    expected = {"cow": "dog", "bull": "-"}
    assert class_map_from(str(tmp_path / "map")) == expected
    assert class_map_from("cow=dog,bull=-") == expected
    assert class_map_from(expected) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.yaml", "no: dog", "has `False` in place of a class name"),
        ("m.yaml", "- cow", "is not a mapping"),
        ("m.yaml", "[", "invalid YAML"),
        ("m.json", "{", "invalid JSON"),
        ("m.csv", "a,b,c", "needs two columns, found `a,b,c`"),
        ("m.txt", "cow\n", "has `cow`, expected NAME=NAME"),
        ("m.txt", "cow=\n", "has `` in place of a class name"),
        ("m.txt", "cow=dog\ncow=cat\n", "maps `cow` to `dog` and to `cat`"),
        ("m.txt", "", "is empty"),
    ],
)
def test_files_that_are_no_map(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        class_map_from(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"^$"):
        class_map_from(str(tmp_path / "none"))
