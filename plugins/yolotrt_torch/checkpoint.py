"""Content of a YOLOv5 checkpoint: yaml, weights, names, strides and attributes of its layers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.console.text import counted, printable
from yolotrt_core.datasets.class_names import labels_from_file, labels_in_order, numbered_labels
from yolotrt_core.errors import UsageError
from yolotrt_torch.checkpoint_archive import Archive, open_archive
from yolotrt_torch.classify_structure import CLASSIFIER, classification_config, is_classifier
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.pickle_names import EXPORT_HINT, UnknownClass
from yolotrt_torch.pickle_reader import Stub, TensorRef
from yolotrt_torch.plain_weights import config_of, normalised
from yolotrt_torch.pruning import apply_masks, without_pruning
from yolotrt_torch.saved_forms import find_weights, refuse_other_task, select_model
from yolotrt_torch.untrusted_values import PlainCopies, convert_value_errors, shown

log = logging.getLogger(__name__)

MODELS = ("Model", "DetectionModel", "SegmentationModel", CLASSIFIER)  # v3 to v6.1, later, and of other tasks
HEADS = ("Detect", "Segment")
PLAIN_FORM = "yolotrt"  # key of checkpoints with plain data only, as saved by yolotrt's training
MAX_MODULES = 100_000  # the largest official checkpoint has about 1000 modules and 1000 weights
MAX_WEIGHTS = 100_000
MAX_NAME = 200  # characters of a weight's name
MAX_STRIDES = 16


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


def read_checkpoint(path: Path, options: TorchOptions | None = None) -> Checkpoint:
    """Read a YOLOv5 checkpoint of any release from v3 to v7, without executing its code.

    Args:
        options: the structure of a plain state_dict, and class names that replace those of the file.

    Raises:
        UsageError: missing, corrupted, not a YOLOv5 checkpoint (names the detected format), or a
            pickle with names that are not allowed.
    """
    options = options or TorchOptions()
    try:
        with convert_value_errors(), open_archive(path) as archive:
            return _with_names(_checkpoint(archive, options), options)
    except UnknownClass as err:
        found = next((name for name in err.names if name.startswith("ultralytics.")), None)
        if found is not None:
            raise UsageError(
                f"expected a YOLOv5 checkpoint, found one of YOLOv8 or later (it contains `{found}`)",
                hint="yolotrt reads models of the yolov5 repository, v3 to v7, not of the `ultralytics` package; an "
                "ONNX export of those needs a postprocessor plugin for its head, see plugins/README.md",
            ) from err
        raise


def _checkpoint(archive: Archive, options: TorchOptions) -> Checkpoint:
    root = archive.root
    if isinstance(root, dict) and PLAIN_FORM in root:
        return _plain_checkpoint(root, archive)
    weights = find_weights(root)
    if weights is not None:
        return _state_dict(weights, archive, options)
    for name in ("yaml", "like"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"`--torch-{name}` is for a plain state_dict, but the file has a model with its own structure",
                hint=f"remove `--torch-{name}`",
            )
    model, which = select_model(root)
    refuse_other_task(model)
    kind = _short(model)
    if kind not in MODELS:
        raise UsageError(
            f"expected a YOLOv5 detection, segmentation or classification model, found a `{model.kind}`",
            hint=EXPORT_HINT,
        )
    modules = dict(_walk(model))
    copies = PlainCopies(archive.array)
    # Upstream's classification models have no yaml.
    config = (
        classification_config(modules) if is_classifier(model) else copies.copy(model.state.get("yaml"), "model yaml")
    )
    if not isinstance(config, dict):
        raise UsageError(
            "the checkpoint's model has no `yaml`, which all YOLOv5 models since v3 have", hint=EXPORT_HINT
        )
    state = apply_masks({name: archive.array(ref) for name, ref in _weights(modules)})
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
        modules={path: without_pruning(module) for path, module in modules.items()},
        facts=facts,
    )


def _state_dict(weights: Mapping[str, TensorRef], archive: Archive, options: TorchOptions) -> Checkpoint:
    """Read weights alone, whose structure the options name."""
    if len(weights) > MAX_WEIGHTS:
        raise UsageError(f"the checkpoint has more than {MAX_WEIGHTS} weights")
    named = {_join_path("", name): ref for name, ref in normalised(weights).items()}
    state = apply_masks({name: archive.array(ref) for name, ref in named.items()})
    config = config_of(state, options)
    if options.names is None:
        log.warning(
            "the file has no names for its %s: numbering them; pass the class names with `--torch-names FILE`, "
            "one per line",
            counted(config["nc"], "class"),
        )
    return Checkpoint(config, state, numbered_labels(config["nc"]), facts={"weights": "state_dict"})


def _with_names(checkpoint: Checkpoint, options: TorchOptions) -> Checkpoint:
    """Replace the class names by those that the options name."""
    if options.names is None:
        return checkpoint
    names, classes = labels_from_file(options.names), checkpoint.config.get("nc")
    if len(names) != classes:
        raise UsageError(
            f"the model has {shown(classes)} classes, but `{options.names}` has names for {len(names)}",
            hint="pass the class names with `--torch-names FILE`, one per line",
        )
    return dataclasses.replace(checkpoint, labels=names)


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
