"""Finds every use of TensorRT in source text.

Types are followed from where an object is made: `trt.Builder(...)`, what its methods are documented to
return, and annotations such as `network: tensorrt.INetworkDefinition`. A use may be of a feature that not
every release has if the same function asks for it first: `library.has("Class.member")`,
`hasattr(x, "member")` or `getattr(x, "member", default)`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from trt_usage import Api, Declared, Use, annotated, is_self, lookup

_MODULE_NAMES = ("trt", "tensorrt")


@dataclass(frozen=True)
class Type:
    """What is known of an expression: the module, a class, an instance, or a bound method."""

    kind: str
    name: str = ""
    member: str = ""


_UNKNOWN = Type("unknown")


def uses(name: str, text: str, api: Api, known: Declared) -> tuple[list[Use], list[str]]:
    """Return the uses in one source, and accesses of TensorRT members on objects of unknown type."""
    reader = _Reader(name, api, known)
    reader.visit(ast.parse(text))
    return reader.uses, reader.untyped


class _Reader(ast.NodeVisitor):
    def __init__(self, name: str, api: Api, known: Declared) -> None:
        self.uses: list[Use] = []
        self.untyped: list[str] = []
        self._name, self._api, self._known = name, api, known
        self._scopes: list[dict[str, Type]] = [{}]
        self._optional: list[set[str]] = [set()]
        self._self: list[Type | None] = [None]
        self._class = [""]

    # Scopes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        scope: dict[str, Type] = {}
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            name = annotated(argument.annotation)
            if name:
                self._named(name, argument)
                scope[argument.arg] = Type("instance", name)
            elif argument.arg == "self" and self._self[-1]:
                scope["self"] = self._self[-1]
        returned = annotated(node.returns)
        if returned:
            self._named(returned, node)
        self._scopes.append(scope)
        self._optional.append(self._asked(node))
        for statement in node.body:
            self.visit(statement)
        self._scopes.pop()
        self._optional.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        base = next((t for b in node.bases if (t := self._type(b)) and t.kind == "class"), None)
        if base:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    self._add(method, f"{base.name}.{method.name}", overrides=len(method.args.args))
        self._self.append(Type("instance", base.name) if base else None)
        self._class.append(f"{self._name}:{node.name}")
        for statement in node.body:
            self.visit(statement)
        self._self.pop()
        self._class.pop()

    # Statements that give names a type

    def visit_Assign(self, node: ast.Assign) -> None:
        found = self._type(node.value)
        for target in node.targets:
            self._bind(target, found, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        found = self._type(node.value) if node.value else None
        name = annotated(node.annotation)
        if name:
            self._named(name, node)
            found = Type("instance", name)
        self._bind(node.target, found, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind(node.target, self._type(node.value), node.value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            found = self._type(item.context_expr)
            if item.optional_vars:
                self._bind(item.optional_vars, found, item.context_expr)
        for statement in node.body:
            self.visit(statement)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._bind_unknown(node.target)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def _comprehension(self, node: Any) -> None:
        self._scopes.append({})
        for part in node.generators:
            self.visit(part.iter)
            self._bind_unknown(part.target)
            for test in part.ifs:
                self.visit(test)
        for value in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(value)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension  # noqa: N815 - ast's names

    def _bind_unknown(self, target: ast.expr) -> None:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                self._scopes[-1][part.id] = _UNKNOWN

    def _bind(self, target: ast.expr, found: Type | None, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            if not (isinstance(value, ast.Constant) and value.value is None):
                self._scopes[-1][target.id] = found or _UNKNOWN
        elif isinstance(target, ast.Attribute):
            owner = self._type(target.value)
            if owner and owner.kind == "instance" and self._is_member(owner, target.attr):
                self._add(target, f"{owner.name}.{target.attr}", written=True)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, given in zip(target.elts, value.elts, strict=False):
                self._bind(part, self._type(given), given)
        else:
            self.visit(target)

    # Expressions

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._type(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._type(node)

    def _type(self, node: ast.expr) -> Type | None:
        """Return an expression's type, noting the uses inside it."""
        if isinstance(node, ast.Name):
            if node.id in _MODULE_NAMES:
                return Type("module")
            found = next((s[node.id] for s in reversed(self._scopes) if node.id in s), _UNKNOWN)
            return None if found is _UNKNOWN else found
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.NamedExpr):
            self.visit_NamedExpr(node)
            return self._type(node.target)
        if isinstance(node, ast.IfExp):
            self.visit(node.test)
            first, second = self._type(node.body), self._type(node.orelse)
            return first or second
        self.visit(node)
        return None

    def _attribute(self, node: ast.Attribute) -> Type | None:
        owner = self._type(node.value)
        if node.attr in _MODULE_NAMES:
            return Type("module")
        if owner is None or (owner.kind == "instance" and not self._is_member(owner, node.attr)):
            own = self._known.attributes.get(self._class[-1], {}) if is_self(node.value) else self._known.public
            if node.attr in own:
                return Type("instance", own[node.attr])
            if owner is None:
                self.untyped.append(f"{self._name}:{node.lineno}: .{node.attr}")
            return None
        if node.attr.startswith("__") or owner.kind == "method":
            return None
        dotted = f"{owner.name}.{node.attr}" if owner.kind != "module" else node.attr
        self._add(node, dotted)
        member = lookup(self._api, dotted)
        if member is None:
            return None
        if member["kind"] == "class":
            return Type("class", dotted)
        if member["kind"] in ("method", "function"):
            return Type("method", owner.name, node.attr)
        kind = member.get("type")
        return Type("instance", kind) if kind in self._api["classes"] else None

    def _call(self, node: ast.Call) -> Type | None:
        function = self._type(node.func)
        for argument in (*node.args, *(k.value for k in node.keywords)):
            self._type(argument)
        if function is None:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            declared_as = self._known.functions.get(name)
            return Type("instance", declared_as) if declared_as else None
        star = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
        call = None if star else (len(node.args), tuple(k.arg for k in node.keywords if k.arg))
        if function.kind == "class":
            explicit = isinstance(node.func, ast.Attribute)
            if explicit and not self._api["classes"][function.name]["enum"]:
                self._add(node, f"{function.name}.__init__", call=call)
            return Type("instance", function.name)
        if function.kind != "method":
            return None
        dotted = f"{function.name}.{function.member}" if function.name else function.member
        # A method taken from its class is given its object as the first argument.
        unbound = isinstance(node.func, ast.Attribute) and (o := self._quiet(node.func.value)) and o.kind == "class"
        if unbound and call:
            call = (call[0] - 1, call[1])
        self._add(node, dotted, call=call)
        returned = {s["returns"] for s in lookup(self._api, dotted).get("signatures") or []}
        known = [r for r in returned if r in self._api["classes"]]
        return Type("instance", known[0]) if known else None

    def _quiet(self, node: ast.expr) -> Type | None:
        """Return a type without noting uses a second time."""
        kept = len(self.uses), len(self.untyped)
        found = self._type(node)
        del self.uses[kept[0] :], self.untyped[kept[1] :]
        return found

    # Notes

    def _is_member(self, owner: Type, name: str) -> bool:
        # A subclass of ours adds attributes of its own to `self`.
        return not (owner == self._self[-1] and name in self._known.own_names)

    def _named(self, name: str, node: ast.AST) -> None:
        """Note a class that an annotation names: it is never evaluated, so it may be missing somewhere."""
        self.uses.append(Use(f"{self._name}:{getattr(node, 'lineno', 0)}", name, optional=True))

    def _add(self, node: ast.AST, dotted: str, **more: Any) -> None:
        asked = set().union(*self._optional)
        optional = any(f"{name}.".startswith(f"{dotted}.") or dotted.startswith(f"{name}.") for name in asked)
        # A release that lacks a class has no objects of it: the name of the class itself was checked where it came in.
        owner = dotted.rpartition(".")[0]
        optional = optional or (bool(owner) and lookup(self._api, owner) is None)
        self.uses.append(Use(f"{self._name}:{getattr(node, 'lineno', 0)}", dotted, optional=optional, **more))

    def _asked(self, function: ast.FunctionDef) -> set[str]:
        """Return the names whose existence a function asks about."""
        asked: set[str] = set()
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name == "has":
                asked |= set(texts)
            elif name in ("hasattr", "getattr") and texts and (name == "hasattr" or len(node.args) == 3):
                owner = self._quiet(node.args[0])
                if owner is not None and owner.kind == "module":
                    asked.add(texts[0])
                elif owner is not None:
                    asked.add(f"{owner.name}.{texts[0]}")
                else:  # of a class that this release may lack altogether
                    asked |= {f"{name}.{texts[0]}" for name in self._known.owners.get(texts[0], ())}
        # Who asks for `config.cuda_graph_strategy` may then name `CudaGraphStrategy`.
        asked |= {self._known.kinds[name] for name in asked if name in self._known.kinds}
        for text in asked:
            self.uses.append(Use(f"{self._name}:{function.lineno}", text, optional=True))
        return asked
