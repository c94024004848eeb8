"""What a use of TensorRT is, what our own code declares of its types, and what a release offers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Api = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """One use; `name` is dotted, `call` the positional count and keywords if it is called.

    Attributes:
        optional: the function asks whether the name exists. written: it is assigned to.
        overrides: number of parameters, of a method that a subclass defines.
    """

    where: str
    name: str
    optional: bool
    call: tuple[int, tuple[str, ...]] | None = None
    written: bool = False
    overrides: int | None = None


@dataclass
class Declared:
    """What our own code says of types: attributes and functions to TensorRT classes.

    Attributes:
        attributes: of each class of ours, named `file:Class`. public: of any class, by attribute name alone.
        own_names: what our classes and functions are called.
        owners: member to the classes that have it in any release; kinds: property to its class.
    """

    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    public: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    own_names: set[str] = field(default_factory=set)
    owners: dict[str, set[str]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


def declared(sources: Iterable[tuple[str, str]], apis: Iterable[Api]) -> Declared:
    """Collect annotations that name TensorRT classes from (name, text) sources, and what all releases offer."""
    found = Declared()
    for api in apis:
        for name, cls in api["classes"].items():
            for member, told in cls["members"].items():
                found.owners.setdefault(member, set()).add(name)
                if told["kind"] == "property" and told["type"] in api["classes"]:
                    found.kinds[f"{name}.{member}"] = told["type"]
    for source, text in sources:
        tree = ast.parse(text)
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            own: dict[str, str] = {}
            for label, name in map(_labelled, ast.walk(cls)):
                if label:
                    own[label] = own.get(label) or name
            found.own_names |= own.keys()
            found.attributes[f"{source}:{cls.name}"] = {label: name for label, name in own.items() if name}
            found.public |= {label: name for label, name in own.items() if name and label[0] != "_"}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.own_names.add(node.name)
                name = annotated(node.returns)
                if name:
                    found.functions[node.name] = name
    return found


def _labelled(node: ast.AST) -> tuple[str, str]:
    """Return the attribute that a statement in a class makes, and the TensorRT class it is annotated with."""
    if isinstance(node, ast.AnnAssign):
        label = node.target.attr if isinstance(node.target, ast.Attribute) else getattr(node.target, "id", "")
        return label, annotated(node.annotation)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
        return node.attr, ""
    return "", ""


def problems(found: Iterable[Use], api: Api) -> list[str]:
    """Say which uses a release would fail."""
    said = []
    for use in found:
        member = lookup(api, use.name)
        if member is None:
            if not use.optional:
                said.append(f"{use.where}: no `{use.name}`")
            continue
        if use.written and not (member["kind"] == "property" and member["settable"]):
            said.append(f"{use.where}: `{use.name}` cannot be set")
        signatures = member.get("signatures") or []
        if use.call is not None and signatures and not any(_fits(use.call, s) for s in signatures):
            said.append(f"{use.where}: `{use.name}` takes no {use.call[0]} positions and keywords {use.call[1]}")
        if use.overrides is not None and signatures:
            wanted = {len(s["parameters"]) for s in signatures}
            if use.overrides not in wanted:
                said.append(f"{use.where}: `{use.name}` is overridden with {use.overrides} parameters, not {wanted}")
    return said


def lookup(api: Api, dotted: str) -> Any:
    """Return the description of `Class.member`, `Class` or a module function; None if there is none."""
    owner, _, member = dotted.rpartition(".")
    if not owner:
        return {"kind": "class"} if member in api["classes"] else api["module"].get(member)
    if dotted in api["classes"]:
        return {"kind": "class"}
    return api["classes"].get(owner, {"members": {}})["members"].get(member)


def distinctive(apis: Iterable[Api], known: Declared) -> set[str]:
    """Return member names that only TensorRT objects have, as far as names can tell."""
    names = {m for api in apis for c in api["classes"].values() for m in c["members"] if "_" in m and m[0] != "_"}
    foreign: set[str] = set(known.own_names)
    for kind in (str, bytes, dict, list, set, Path):
        foreign |= set(dir(kind))
    return names - foreign


def _fits(call: tuple[int, tuple[str, ...]], signature: Mapping[str, Any]) -> bool:
    positions, keywords = call
    parameters = [tuple(p) for p in signature["parameters"] if p[0] not in ("self",)]
    if positions > len(parameters):
        return False
    rest = dict(parameters[positions:])
    if any(k not in rest for k in keywords):
        return False
    return all(has_default or name in keywords for name, has_default in rest.items())


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def annotated(node: ast.expr | None) -> str:
    """Return `X.Y` for an annotation `tensorrt.X.Y`, also as text or beside None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp):
        return annotated(node.left) or annotated(node.right)
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if parts and isinstance(node, ast.Name) and node.id == "tensorrt" else ""
