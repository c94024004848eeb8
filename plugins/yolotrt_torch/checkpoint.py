"""Content of a YOLOv5 checkpoint: yaml, weights, names, strides and attributes of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.console.text import printable
from yolotrt_core.datasets.class_names import labels_in_order
from yolotrt_core.errors import UsageError
from yolotrt_torch.checkpoint_archive import Archive, open_archive
from yolotrt_torch.pickle_reader import RefusedGlobal, Stub, TensorRef
from yolotrt_torch.untrusted_values import PlainCopies, convert_value_errors, shown

MODELS = ("Model", "DetectionModel", "SegmentationModel")  # v3 to v6.1, later, and of segmentation
HEADS = ("Detect", "Segment")
PLAIN_FORM = "yolotrt"  # key of checkpoints with plain data only, as saved by yolotrt's training
MAX_MODULES = 100_000  # the largest official checkpoint has about 1000 modules and 1000 weights
MAX_WEIGHTS = 100_000
MAX_NAME = 200  # characters of a weight's name
MAX_STRIDES = 16
_HINT = "pass the `.pt` file that YOLOv5's training wrote"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's content, without PyTorch objects.

    Attributes:
        config: the model yaml as plain values.
        state: weight name (`model.0.conv.weight`) to array, in the dtype of the file.
        labels: class names, index is the class id.
        stride: pixels per cell of each level, empty if the file has none.
        modules: module path (`model.0.conv`) to its class and attributes; empty in the plain form.
        facts: for display: which weights (`ema` or `model`), `date`, `epoch`.
    """

    config: Mapping[str, Any]
    state: Mapping[str, NDArray[Any]]
    labels: tuple[str, ...]
    stride: tuple[int, ...] = ()
    modules: Mapping[str, Stub] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a YOLOv5 detection checkpoint of any release from v3 to v7, without executing its code.

    Raises:
        UsageError: missing, corrupted, not a YOLOv5 detection checkpoint (names the detected format), or a
            pickle with names that are not allowed.
    """
    try:
        with convert_value_errors(), open_archive(path) as archive:
            return _checkpoint(archive)
    except RefusedGlobal as err:
        if err.name.startswith("ultralytics."):
            raise UsageError(
                f"expected a YOLOv5 checkpoint, found one of YOLOv8 or later (it contains `{err.name}`)",
                hint="yolotrt reads models of the yolov5 repository, v3 to v7, not of the `ultralytics` package",
            ) from err
        raise


def _checkpoint(archive: Archive) -> Checkpoint:
    root = archive.root
    if isinstance(root, dict) and PLAIN_FORM in root:
        return _plain_checkpoint(root, archive)
    model, which = _select_model(root)
    kind = _short(model)
    if kind not in MODELS:
        known = {"ClassificationModel": "a classification model"}
        raise UsageError(
            f"expected a YOLOv5 detection or segmentation model, found {known.get(kind, f'a `{model.kind}`')}",
            hint="only detection and segmentation models are supported",
        )
    modules = dict(_walk(model))
    copies = PlainCopies()
    config = copies.copy(model.state.get("yaml"), "model yaml")
    if not isinstance(config, dict):
        raise UsageError("the checkpoint's model has no `yaml`, which all YOLOv5 models since v3 have", hint=_HINT)
    state = {name: archive.array(ref) for name, ref in _weights(modules)}
    head = _head(modules)
    stride = head.state.get("stride") if head else None
    strides = archive.array(stride) if isinstance(stride, TensorRef) else np.zeros(0)
    facts = {"weights": which}
    if isinstance(root, dict):
        facts |= {key: shown(root[key])[:40] for key in ("date", "epoch") if isinstance(root.get(key), (str, int))}
    return Checkpoint(
        config=config,
        state=state,
        labels=_labels(copies.copy(model.state.get("names"), "class names"), config.get("nc")),
        stride=_stride(strides.tolist() if strides.size <= MAX_STRIDES else f"{strides.size} numbers"),
        modules=modules,
        facts=facts,
    )


def _plain_checkpoint(root: Mapping[Any, Any], archive: Archive) -> Checkpoint:
    """Read the plain format: yaml, state_dict, names, stride."""
    copies = PlainCopies()
    config, weights = copies.copy(root.get("yaml"), "model yaml"), root.get("state_dict")
    if root[PLAIN_FORM] != 1 or not isinstance(config, dict) or not isinstance(weights, dict):
        raise UsageError("unknown version of a yolotrt checkpoint", hint="expected `yolotrt: 1`, `yaml`, `state_dict`")
    state = {_join_path("", name): archive.array(v) for name, v in weights.items() if isinstance(v, TensorRef)}
    stride = copies.copy(root.get("stride"), "strides")
    return Checkpoint(
        config=config,
        state=state,
        labels=_labels(copies.copy(root.get("names"), "class names"), config.get("nc")),
        stride=_stride(stride) if isinstance(stride, list) else (),
        facts={"weights": "model"},
    )


def _select_model(root: Any) -> tuple[Stub, str]:
    """Return the model to use, preferably the averaged weights (`ema`), and its key."""
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
    keys = ", ".join(f"`{shown(k)[:20]}`" for k in list(root)[:5])
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
            if count > MAX_MODULES:
                raise UsageError(f"the checkpoint's model has more than {MAX_MODULES} modules")
            if isinstance(child, Stub):
                waiting.append((_join_path(path, name), child))


def _weights(modules: Mapping[str, Stub]) -> Iterator[tuple[str, TensorRef]]:
    """Yield the items of the model's `state_dict()`."""
    count = 0
    for path, module in modules.items():
        hidden = module.state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            tensors = module.state.get(group)
            for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
                count += 1
                if count > MAX_WEIGHTS:
                    raise UsageError(f"the checkpoint's model has more than {MAX_WEIGHTS} weights")
                if isinstance(tensor, TensorRef) and not (isinstance(hidden, set) and name in hidden):
                    yield _join_path(path, name), tensor


def _join_path(path: str, name: Any) -> str:
    """Return the path of an item of a module."""
    if not isinstance(name, str) or len(path) + len(name) > MAX_NAME:
        raise UsageError(
            f"a part of the checkpoint's model has the name {shown(name)}, expected a path of at most "
            f"{MAX_NAME} characters"
        )
    return f"{path}.{name}" if path else name


def _head(modules: Mapping[str, Stub]) -> Stub | None:
    return next((module for module in modules.values() if _short(module) in HEADS), None)


def _short(module: Stub) -> str:
    return module.kind.rpartition(".")[2]


def _stride(values: Any) -> tuple[int, ...]:
    given: list[Any] = values if isinstance(values, list) and len(values) <= MAX_STRIDES else [None]
    if not all(isinstance(v, (int, float)) and 0 < v < 1 << 16 and v == int(v) for v in given):
        raise UsageError(f"the checkpoint's strides are {shown(values)}, expected integers")
    return tuple(int(v) for v in given)


def _labels(names: Any, nc: Any) -> tuple[str, ...]:
    """Return one name per class; missing names are numbers."""
    classes = nc if type(nc) is int and 0 < nc < 1 << 16 else 0
    labels = labels_in_order(names if isinstance(names, (list, dict)) else (), classes)
    return tuple(map(printable, labels or ()))
