"""What a YOLOv5 checkpoint says: its yaml, weights, names, strides, and the attributes of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.errors import UsageError
from yolotrt_torch.archive import Archive, open_archive
from yolotrt_torch.pickle_reader import RefusedGlobal, Stub, TensorRef, printable, printable_errors

DETECTORS = ("Model", "DetectionModel")  # v3 to v6.1, and later
PLAIN_FORM = "yolotrt"  # key of checkpoints that hold plain data only, as yolotrt's own training saves them
MOST_MODULES = 100_000
_HINT = "pass the `.pt` file that YOLOv5's training wrote"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's content; no PyTorch in it.

    Attributes:
        config: the model yaml as plain values.
        state: weight name (`model.0.conv.weight`) to array, in the dtype of the file.
        labels: class names, index is the class id.
        stride: pixels per cell of each level as the file says, empty if it does not.
        modules: module path (`model.0.conv`) to its class and attributes; empty in the plain form.
        facts: for people: which weights (`ema` or `model`), `date`, `epoch`.
    """

    config: Mapping[str, Any]
    state: Mapping[str, NDArray[Any]]
    labels: tuple[str, ...]
    stride: tuple[int, ...] = ()
    modules: Mapping[str, Stub] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a YOLOv5 detection checkpoint of any release from v3 to v7; executes nothing from it.

    Raises:
        UsageError: missing, damaged, not a YOLOv5 detection checkpoint (and what it seems to be), or a
            pickle that names what no such checkpoint needs.
    """
    try:
        with printable_errors(), open_archive(path) as archive:
            return _checkpoint(archive)
    except RefusedGlobal as err:
        if err.name.startswith("ultralytics."):
            raise UsageError(
                f"expected a YOLOv5 checkpoint, found one that looks like YOLOv8 or later (it names `{err.name}`)",
                hint="yolotrt reads models of the yolov5 repository, v3 to v7, not of the `ultralytics` package",
            ) from err
        raise


def _checkpoint(archive: Archive) -> Checkpoint:
    root = archive.root
    if isinstance(root, dict) and PLAIN_FORM in root:
        return _plain_checkpoint(root, archive)
    model, which = _choose(root)
    kind = _short(model)
    if kind not in DETECTORS:
        known = {"SegmentationModel": "a segmentation model", "ClassificationModel": "a classification model"}
        raise UsageError(
            f"expected a YOLOv5 detection model, found {known.get(kind, f'a `{model.kind}`')}",
            hint="only detection models are supported",
        )
    modules = dict(_walk(model))
    config = _plain(model.state.get("yaml"))
    if not isinstance(config, dict):
        raise UsageError("the checkpoint's model carries no `yaml`, as every YOLOv5 model since v3 does", hint=_HINT)
    state = {name: archive.array(ref) for name, ref in _weights(modules)}
    nc = config.get("nc")
    head = _head(modules)
    stride = head.state.get("stride") if head else None
    facts = {"weights": which}
    if isinstance(root, dict):
        facts |= {key: str(root[key])[:40] for key in ("date", "epoch") if isinstance(root.get(key), (str, int))}
    return Checkpoint(
        config=config,
        state=state,
        labels=_labels(model.state.get("names"), nc),
        stride=_stride(archive.array(stride)) if isinstance(stride, TensorRef) else (),
        modules=modules,
        facts=facts,
    )


def _plain_checkpoint(root: Mapping[Any, Any], archive: Archive) -> Checkpoint:
    """Read the form that holds plain data only: yaml, state_dict, names, stride."""
    config, weights = _plain(root.get("yaml")), root.get("state_dict")
    if root[PLAIN_FORM] != 1 or not isinstance(config, dict) or not isinstance(weights, dict):
        raise UsageError(
            "a yolotrt checkpoint of an unknown version", hint="expected `yolotrt: 1`, `yaml`, `state_dict`"
        )
    state = {str(k): archive.array(v) for k, v in weights.items() if isinstance(v, TensorRef)}
    stride = root.get("stride")
    return Checkpoint(
        config=config,
        state=state,
        labels=_labels(_plain(root.get("names")), config.get("nc")),
        stride=_stride(np.asarray(_plain(stride))) if isinstance(stride, (list, tuple)) else (),
        facts={"weights": "model"},
    )


def _choose(root: Any) -> tuple[Stub, str]:
    """Return the model to use, the averaged weights (`ema`) where there are some, and which it is."""
    if isinstance(root, Stub):
        return root, "model"
    if not isinstance(root, dict):
        raise UsageError(f"expected a YOLOv5 checkpoint, found a saved `{type(root).__name__}`", hint=_HINT)
    ema = root.get("ema")
    if isinstance(ema, (tuple, list)) and ema:  # v4 and older: (model, number of updates)
        ema = ema[0]
    if isinstance(ema, Stub):
        return ema, "ema"
    model = root.get("model")
    if isinstance(model, Stub):
        return model, "model"
    weights = model if isinstance(model, dict) else root
    if weights and all(isinstance(v, TensorRef) for v in weights.values()):
        raise UsageError(
            "expected a YOLOv5 checkpoint, found a plain state_dict: the weights without the architecture",
            hint="pass the whole checkpoint as YOLOv5's training saved it",
        )
    keys = ", ".join(f"`{str(k)[:20]}`" for k in list(root)[:5])
    raise UsageError(f"expected a YOLOv5 checkpoint with a `model`, found a dict with {keys or 'nothing'}", hint=_HINT)


def _walk(model: Stub) -> Iterator[tuple[str, Stub]]:
    """Yield every module below the model with its path."""
    waiting = [("", model)]
    count = 0
    while waiting:
        path, module = waiting.pop()
        yield path, module
        children = module.state.get("_modules")
        for name, child in children.items() if isinstance(children, dict) else ():
            count += 1
            if count > MOST_MODULES:
                raise UsageError(f"the checkpoint's model has more than {MOST_MODULES} modules")
            if isinstance(child, Stub):
                waiting.append((f"{path}.{name}" if path else str(name), child))


def _weights(modules: Mapping[str, Stub]) -> Iterator[tuple[str, TensorRef]]:
    """Yield what the model's `state_dict()` would hold."""
    for path, module in modules.items():
        hidden = module.state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            tensors = module.state.get(group)
            for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
                if isinstance(tensor, TensorRef) and not (isinstance(hidden, set) and name in hidden):
                    yield (f"{path}.{name}" if path else str(name)), tensor


def _head(modules: Mapping[str, Stub]) -> Stub | None:
    return next((module for module in modules.values() if _short(module) == "Detect"), None)


def _short(module: Stub) -> str:
    return module.kind.rpartition(".")[2]


def _stride(values: NDArray[Any]) -> tuple[int, ...]:
    if values.dtype.kind not in "fiu" or values.ndim != 1 or not np.array_equal(values, np.rint(values)):
        raise UsageError(f"the checkpoint's strides are {values.tolist()}, expected whole numbers of pixels")
    return tuple(int(v) for v in values)


def _labels(names: Any, nc: Any) -> tuple[str, ...]:
    """Return one name per class; what the file leaves out is called by its number."""
    count = nc if type(nc) is int and 0 < nc < 1 << 16 else 0
    given: dict[Any, Any] = {}
    if isinstance(names, dict):
        given = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in names.items()}
    elif isinstance(names, (list, tuple)):
        given = dict(enumerate(names))
    return tuple(printable(str(given.get(i, i))) for i in range(count))


def _plain(value: Any, depth: int = 0) -> Any:
    """Copy what YAML can hold; anything else is refused."""
    if depth > 8:
        raise UsageError("the checkpoint's model yaml is nested too deeply")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and len(value) < 10_000:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) < 10_000:
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    raise UsageError(f"the checkpoint's model yaml holds a `{type(value).__name__}`")
