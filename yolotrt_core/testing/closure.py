"""Which modules a stage's work runs through, read from their text without importing them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yolotrt_core.plugin.registered import Registered
from yolotrt_core.store import core_sources
from yolotrt_core.store.code_digest import source_file

# Parts of the core that no answer depends on, and why; what they import is not looked at either.
NO_PART: Mapping[str, str] = {
    "yolotrt_core": "offers the Python API",
    **dict.fromkeys(
        (f"yolotrt_core.{name}" for name in ("errors", "log", "progress", "text")),
        "tells people what happens",
    ),
    **dict.fromkeys(
        (f"yolotrt_core.{name}" for name in ("hookspecs", "installed", "registered", "registry", "guard")),
        "finds stages and tools and hands their answers on; they are in the key by name and version",
    ),
    **dict.fromkeys((f"yolotrt_core.{name}" for name in ("core_sources", "source_digest")), "makes the keys"),
    **dict.fromkeys(
        (f"yolotrt_core.{name}" for name in ("digest", "download", "media_inputs", "sources", "user_paths")),
        "finds files, whose digests are in the key",
    ),
    "yolotrt_core.console.signals": "ends work early, which then leaves nothing",
}
# Where the work of a stage begins, and where that of its sessions.
_WORK = ("export", "apply", "layers", "calibrate", "build", "decode", "device_program")
_SESSION = ("open", "open_source")


@dataclass(frozen=True, slots=True)
class Closure:
    """What modules import, directly or through each other, function-level imports included.

    Attributes:
        packages: top-level packages to look into, as `yolotrt_mine`.
        known: modules that need no name; they are not looked into either.
    """

    packages: Collection[str]
    known: Collection[str]

    def unnamed(self, named: Iterable[str], methods: Iterable[Callable[..., Any]] = ()) -> dict[str, str]:
        """Return what is imported and nobody names.

        Args:
            named: sources as a stage states them; files that are no modules are passed over.
            methods: where the work begins; what their own text imports must be named as well.

        Returns:
            Dotted name of each missing module to what imports it.
        """
        modules = {name for name in named if "/" not in name}
        todo = [(method.__qualname__, found) for method in methods for found in self._of_method(method)]
        todo += [(module, found) for module in modules for found in self._of_module(module)]
        missing: dict[str, str] = {}
        while todo:
            importer, module = todo.pop()
            if module not in modules and module not in missing:
                missing[module] = importer
                todo += [(module, found) for found in self._of_module(module)]
        return missing

    def _of_module(self, module: str) -> Iterator[str]:
        file = source_file(module)
        if file is not None and file.suffix == ".py":
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            yield from self._imports(file.read_text(encoding="utf-8"), package)

    def _of_method(self, method: Callable[..., Any]) -> Iterator[str]:
        module = sys.modules[method.__module__]
        yield from self._imports(textwrap.dedent(inspect.getsource(method)), module.__package__ or "")

    def _imports(self, text: str, package: str) -> Iterator[str]:
        for node in _nodes(ast.parse(text)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                if module.partition(".")[0] in self.packages:
                    names = [_module_of(module, each.name) for each in node.names]
            yield from (n for n in names if n.partition(".")[0] in self.packages and n not in self.known)


def unnamed_sources(found: Registered, plugin: Any, no_part: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return what a stage's work runs through and its attributes do not name.

    Args:
        plugin: the module or object whose hook returned the stage. no_part: exceptions, each with the reason.

    Returns:
        `sources` and `session_sources`, where something is missing, to each module and what imports it.
    """
    hook = "yolotrt_passes" if found.kind == "pass" else f"yolotrt_{found.kind}s"
    stage = next(stage for stage in getattr(plugin, hook)() if stage.name == found.name)
    packages = {"yolotrt_core", type(stage).__module__.partition(".")[0]}
    core = core_sources.DETECTING if found.kind == "postprocessor" else core_sources.STAGE
    asked = {
        "sources": (found.stage.sources, core, _WORK),
        "session_sources": (found.session_sources, core_sources.CONTRACT, _SESSION),
    }
    gaps = {}
    for attribute, (named, covered, methods) in asked.items():
        begun = [getattr(stage, name) for name in methods if callable(getattr(stage, name, None))]
        if begun:
            gaps[attribute] = Closure(packages, {*NO_PART, *no_part, *covered}).unnamed(named, begun)
    return {attribute: missing for attribute, missing in gaps.items() if missing}


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, leaving out what only a type checker runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _nodes(other)
        else:
            yield node
            yield from _nodes(node)


def _module_of(package: str, name: str) -> str:
    """Return `package.name` if that is a module, else the module that holds the name; nothing is imported."""
    file = source_file(package)
    if file is None or file.name != "__init__.py":
        return package
    inside = (file.with_name(f"{name}.py"), file.parent / name / "__init__.py")
    return f"{package}.{name}" if any(each.is_file() for each in inside) else package
