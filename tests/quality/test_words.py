"""Vocabulary of texts: strings, docstrings and documentation use the glossary of `CONTRIBUTING.md`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Regular expression, matched as whole words without regard to case, to the term to use.
REFUSED = {
    r"pictures?": "image",
    r"films?": "video",
    r"(file )?endings?": "suffix",
    r"mend(s|ed|ing)?": "fix, rebuild",
    r"hand(s|ed|ing)? (it |them )?(out|on|over|back)": "return, pass",
    r"lent|lends?|lending": "shared, reserved",
    r"told|tells?": "report, state, distinguish",
    r"says? (so|of|that|which|what|how|who|no)|said": "report, state",
    r"asks?|asked": "request, call, query",
    r"judg(e|es|ed|ing)": "validate, evaluate",
    r"verdicts?": "result",
    r"strangers?": "untrusted, unknown",
    r"who(m|se)?ever|nobody|somebody|anybody|anyone's|everybody|no one": "name the subject",
    r"roads?": "path, mechanism",
    r"stand-ins?": "mock, fallback, placeholder",
    r"lanes?": "execution slot",
    r"words": "text, argument, name",
    r"in words": "as text",
    r"(?<!there )(is|are|was|were|be) (none|nothing|no(?! longer))": "state what it is, or `not a`",
    r"(that|which|what) (is|are) none": "invalid",
    r"beside": "next to, with, in addition to",
    r"least(?! common)(?<!at least)": "minimum",
    r"(?<!at )most (batches|detections|scratch|bytes|frames|images|boxes|pixels)": "maximum",
    r"damaged?|damages": "corrupted, error",
    r"goes away|go away|went away": "is removed",
    r"left out|leaves? out|leaving out": "skipped, excluded",
    r"made again|mak(e|es|ing) (it |them )?again|made anew|anew": "rebuilt",
    r"made[- ]up": "generated",
    r"passed over|pass(es)? over": "skipped",
    r"cut short": "truncated",
    r"cut off": "dropped",
    r"written over": "overwritten",
    r"taken for": "treated as",
    r"all the same": "nevertheless",
    r"to be had": "available",
    r"newcomers?": "new user",
    r"fell silent|falls silent": "timed out",
    r"a plugin of (yours|one's own)": "your plugin",
    r"is the answer": "selected",
    r"not by a": "not by",
    r"will not do": "is invalid",
    r"does not suffice|do not suffice": "out of, too few",
    r"speaks": "supports",
    r"contend(s|ed)?": "conflict",
    r"complain(s|ed|t)?": "warn, error",
    r"the fault of|a fault of|at fault|to blame|blamed?": "plugin bug, invalid input",
    r"is it (there|free|complete)": "check that ...",
}
# Keys, names and standard terms that contain a refused word: they are no prose.
ALLOWED = (
    "pictures_from",
    "least_agreement",
    "frames to boxes",
    "least recently used",
    "least squares",
    "least significant",
    "DamagedArtifactError",
)
# JSON keys and values, file names and identifiers: a string without a space is no prose.
_IS_PROSE = re.compile(r"[A-Za-z]\S*\s+\S*[A-Za-z]")
_CODE = re.compile(r"```.*?```|`[^`\n]*`|\[\[\[cog.*?\]\]\]|\]\([^)]*\)|https?://\S+", re.DOTALL)
_PATTERNS = {re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE): term for words, term in REFUSED.items()}


def _sources() -> list[Path]:
    return sorted(path for folder in ("yolotrt_core", "plugins", "examples") for path in (ROOT / folder).rglob("*.py"))


def _documents() -> list[Path]:
    guides = [
        *(ROOT / "plugins").rglob("*.md"),
        *(ROOT / "yolotrt_core").rglob("*.md"),
        *(ROOT / "tests").rglob("*.md"),
    ]
    schemas = (ROOT / "yolotrt_core" / "schemas").glob("*.json")
    return sorted([*ROOT.glob("*.md"), *guides, *schemas])


def _strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every string with its line, docstrings included; f-strings as one text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = (str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield node.lineno, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def _refused(text: str) -> Iterator[str]:
    text = _CODE.sub(" ", text)
    for name in ALLOWED:
        text = text.replace(name, " ")
    for pattern, term in _PATTERNS.items():
        for match in pattern.finditer(text):
            yield f"`{match[0]}`, use: {term}"


def _in_sources(path: Path) -> list[str]:
    found = ((line, text) for line, text in _strings(path) if _IS_PROSE.search(text))
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for line, text in found for word in _refused(text)]


def _in_document(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        text = "\n".join(re.findall(r'"description": "(.*)"', text))
    return [f"{path.relative_to(ROOT)}: {word}" for word in _refused(text)]


def test_texts_use_the_glossary() -> None:
    found = [line for path in _sources() for line in _in_sources(path)]
    found += [line for path in _documents() for line in _in_document(path)]
    assert not found, f"{len(found)} refused terms, see GLOSSARY in CONTRIBUTING.md:\n" + "\n".join(found)


@pytest.mark.parametrize("text", ["the picture is there", "`x` is no file", "files handed out", "a damaged file"])
def test_refused_terms_are_found(text: str) -> None:
    assert list(_refused(text))


@pytest.mark.parametrize("text", ["at least 6 images", "`picture` is a name", "the image is missing"])
def test_glossary_terms_pass(text: str) -> None:
    assert not list(_refused(text))
