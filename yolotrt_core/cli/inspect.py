"""`inspect`: content of a model or engine file, of which nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.console.text import printable
from yolotrt_core.plugin.description import Description, NameStatus
from yolotrt_core.plugin.options import option, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.types import Json

_SHOWN_CLASSES = 12
_BILLION = 1e9


@dataclass(frozen=True, eq=False, repr=False)
class InspectSettings:
    """Settings of `inspect`."""

    file: str = option(
        "", positional=True, help="Checkpoint, ONNX file, TensorFlow model, engine with its sidecar, or known name"
    )
    layers: bool = option(False, switch=True, help="List of all layers")
    exporter: str | None = option(None, metavar="NAME", default_text="by content", help="Exporter that reads a model")
    store: Path | None = option(None, default_text="see README", metavar="DIR", help="Artifact store")
    json: bool = json_option("inspect")


def task(registry: Registry) -> Any:
    """Make the `inspect` task."""
    summary = (
        "Show what is in a model or engine file; nothing of it is executed.\n\n"
        "Operations count 2 for each multiplication with its addition. Of a checkpoint, the classes and functions that "
        "its pickle names are listed.\n\n"
        "Example: inspect yolov5n.pt"
    )

    def body(given: Given) -> None:
        from yolotrt_core.pipeline.inspection import inspect_file

        asked = resolve_settings(InspectSettings, given)
        store = open_store(asked.store)
        found = inspect_file(asked.file, asked.exporter, store=store, registry=registry)
        if asked.json:
            show(json.dumps(document(asked.file, found), indent=2))
        else:
            _print(found, with_layers=asked.layers)

    return make_task("inspect", summary, [InspectSettings], body)


def document(file: str, found: Description) -> Json:
    """Return what `inspect --json` prints, as described in yolotrt_core/schemas/inspect.json."""
    content = to_json(found)
    assert isinstance(content, dict)
    return {"schema": 1, "file": file, **content, "precisions": to_json(found.precisions)}


def _print(found: Description, *, with_layers: bool) -> None:
    print_table(("", ""), list(_facts(found)))
    if with_layers and found.layers:
        show()
        rows = [
            (layer.name, layer.kind, layer.precision, f"{layer.parameters:,}", _giga(layer.operations))
            for layer in found.layers
        ]
        print_table(("layer", "kind", "precision", "parameters", "GFLOPs"), rows)
    # What is allowed is known and long; it is in the JSON document.
    suspicious = [(name.name, name.status) for name in found.names if name.status != "allowed"]
    if suspicious:
        show()
        print_table(("name in the pickle", "status"), suspicious)
    if found.problem:
        show(f"\n{printable(found.problem)}")


def _facts(found: Description) -> Iterator[tuple[str, str]]:
    yield "format", found.format
    if found.task:
        yield "task", found.task
    if found.labels:
        more = len(found.labels) - _SHOWN_CLASSES
        names = ", ".join(found.labels[:_SHOWN_CLASSES]) + (f", ... and {more} more" if more > 0 else "")
        yield "classes", f"{len(found.labels)}: {names}"
    if found.strides:
        yield "strides", ", ".join(map(str, found.strides))
    for level, anchors in enumerate(found.anchors):
        yield "anchors" if not level else "", "  ".join(f"{width:g}x{height:g}" for width, height in anchors)
    for kind, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            yield kind, f"{tensor.name} {tensor.dtype} {' x '.join(map(str, tensor.shape))}"
    if found.parameters is not None:
        yield "parameters", f"{found.parameters:,}"
    if found.operations is not None:
        yield "GFLOPs", _giga(found.operations) + (f" at {found.size[0]}x{found.size[1]}" if found.size else "")
    if found.layers:
        counts = ", ".join(f"{count} {precision}" for precision, count in found.precisions.items())
        yield "layers", f"{len(found.layers)}: {counts}"
    if found.names:
        statuses = [name.status for name in found.names]
        numbers = [f"{statuses.count(status)} {status}" for status in get_args(NameStatus)]
        yield "names in the pickle", ", ".join(numbers)
    yield from found.facts.items()


def _giga(operations: int | None) -> str:
    if operations is None:
        return ""
    return f"{operations / _BILLION:.1f}" if operations >= _BILLION else f"{operations / _BILLION:.2g}"
