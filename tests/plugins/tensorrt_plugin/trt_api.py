"""Reads what a TensorRT module offers: run as a script in a process of its own, prints JSON.

pybind11 writes the signature of every method and the type of every property into its docstring.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\)(?: -> (.+))?$")
_GETTER = re.compile(r"^\w*\(.*?\) -> (.+)$", re.MULTILINE)
_MODULE = re.compile(r"\b(?:[a-z_]+\.)*tensorrt(?:_rtx)?\.(?=[A-Z])")


def described(module: Any) -> dict[str, Any]:
    """Return class name (dotted if nested) to its members, and `functions` for the module's own names."""
    classes: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, type):
            _add_class(classes, name, value)
        elif not name.startswith("__"):
            plain[name] = {"kind": "function" if callable(value) else "value", "signatures": signatures(value)}
    return {"classes": classes, "module": plain}


def signatures(function: Any) -> list[dict[str, Any]]:
    """Return the overloads that a docstring lists: parameters as [name, has default] and the result's type."""
    found = []
    for line in (getattr(function, "__doc__", None) or "").splitlines():
        told = _SIGNATURE.match(line.strip())
        if told and told[1] != "Overloaded" and "*args" not in told[2]:
            parameters = [(p.partition(":")[0].strip(), " = " in p) for p in _split(told[2])]
            found.append({"parameters": parameters, "returns": _plain_type(told[3])})
    return found


def _add_class(classes: dict[str, Any], name: str, cls: type) -> None:
    if name in classes:
        return
    members: dict[str, Any] = {}
    classes[name] = {"enum": hasattr(cls, "__members__"), "members": members}
    for attribute in dir(cls):
        if attribute.startswith("__") and attribute != "__init__":
            continue
        value = getattr(cls, attribute)
        if isinstance(value, property):
            told = _GETTER.match((getattr(value.fget, "__doc__", None) or "").strip())
            members[attribute] = {
                "kind": "property",
                "type": _plain_type(told[1]) if told else None,
                "settable": value.fset is not None,
            }
        elif isinstance(value, type):
            members[attribute] = {"kind": "class"}
            _add_class(classes, f"{name}.{attribute}", value)
        elif isinstance(value, cls):
            members[attribute] = {"kind": "constant", "type": name}
        elif callable(value):
            members[attribute] = {"kind": "method", "signatures": signatures(value)}
        else:
            owner = next((n for n, c in classes.items() if n != name and type(value).__name__ == n), None)
            members[attribute] = {"kind": "constant", "type": owner}


def _split(parameters: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth, current = [], 0, ""
    for letter in parameters:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [p.strip() for p in [*parts, current] if p.strip() and p.strip() not in ("/", "*")]


def _plain_type(text: str | None) -> str | None:
    if text is None:
        return None
    text = _MODULE.sub("", text.strip())
    optional = re.fullmatch(r"(?:Optional|typing\.Optional)\[(.*)\]", text)
    text = optional[1] if optional else text
    return text.removesuffix(" | None").strip()


if __name__ == "__main__":
    json.dump(described(importlib.import_module(sys.argv[1])), sys.stdout)
