"""Structure of a classification model, which has no yaml, from the attributes of its layers, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolotrt_core.errors import UsageError
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.pickle_records import Stub
from yolotrt_torch.untrusted_values import shown

CLASSIFIER = "ClassificationModel"
DEFAULT_SIZE = 224  # pixels; upstream trains at this size unless told otherwise
_MAX_SIZE = 1 << 13
_MAX_LAYERS = 500


def is_classifier(model: Stub) -> bool:
    """Check whether YOLOv5's classification trained a model, and not torchvision's network."""
    return model.kind.rpartition(".")[2] == CLASSIFIER


def classification_config(modules: Mapping[str, Stub]) -> dict[str, Any]:
    """Return the structure of a classification model in the form of a model yaml, from the attributes of its layers.

    The network built from it is compared with the modules like one built from a yaml.

    Raises:
        UsageError: a layer that classification models of YOLOv5 do not have, or one without its attributes.
    """
    names = list(_parts(modules.get("model")))
    if not 1 < len(names) <= _MAX_LAYERS or names != [str(number) for number in range(len(names))]:
        raise UsageError("the classification model has no layers `model.0`, `model.1` and so on", hint=EXPORT_HINT)
    last = len(names) - 1
    lines = [_line(modules, f"model.{number}", is_head=number == last) for number in range(last + 1)]
    return {
        "nc": lines[-1][3][0],
        "ch": _number(modules, "model.0.conv", "in_channels"),
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": 1,  # required of a yaml; this head has none
        "backbone": lines[:-1],
        "head": lines[-1:],
    }


def trained_size(model: Stub) -> int:
    """Return the side in pixels to which the model's own transforms crop images; upstream's default without them."""
    transforms = model.state.get("transforms")
    steps = transforms.state.get("transforms") if isinstance(transforms, Stub) else None
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, Stub) and step.kind.rpartition(".")[2] == "CenterCrop":
            height, width = step.state.get("h"), step.state.get("w")
            if type(height) is int and height == width and 0 < height <= _MAX_SIZE:
                return height
    return DEFAULT_SIZE


def _line(modules: Mapping[str, Stub], path: str, *, is_head: bool) -> list[Any]:
    kind = modules[path].kind.rpartition(".")[2] if path in modules else "nothing"
    if is_head and kind == "Classify":
        conv = f"{path}.conv.conv"
        classes, hidden = _number(modules, f"{path}.linear", "out_features"), _number(modules, conv, "out_channels")
        return [-1, 1, kind, [classes, hidden, *_kernel(modules, conv)]]
    if not is_head and kind == "Conv":
        conv = f"{path}.conv"
        return [-1, 1, kind, [_number(modules, conv, "out_channels"), *_kernel(modules, conv)]]
    if not is_head and kind == "C3":
        blocks = f"{path}.m"
        width = _number(modules, f"{path}.cv3.conv", "out_channels")
        # The half keeps rounding errors from losing a channel.
        share = (_number(modules, f"{path}.cv1.conv", "out_channels") + 0.5) / max(1, width)
        adds = modules[f"{blocks}.0"].state.get("add") if f"{blocks}.0" in modules else False
        groups = _number(modules, f"{blocks}.0.cv2.conv", "groups")
        return [-1, max(1, len(_parts(modules.get(blocks)))), kind, [width, adds is True, groups, share]]
    raise UsageError(
        f"layer `{path}` of the classification model is a `{shown(kind)}`, expected "
        f"{'`Classify`, the head' if is_head else '`Conv` or `C3`'}",
        hint=EXPORT_HINT,
    )


def _kernel(modules: Mapping[str, Stub], conv: str) -> list[int]:
    """Return kernel size, stride, padding and groups."""
    return [_number(modules, conv, name) for name in ("kernel_size", "stride", "padding", "groups")]


def _number(modules: Mapping[str, Stub], path: str, name: str) -> int:
    """Return an attribute that is a natural number, or a pair of the same."""
    found = modules[path].state.get(name) if path in modules else None
    values: list[Any] = list(found) if isinstance(found, (list, tuple)) and len(found) == 2 else [found]
    if any(type(value) is not int or value < 0 or value != values[0] for value in values):
        raise UsageError(
            f"module `{path}` of the classification model has {name} {shown(found)}, expected a number",
            hint=EXPORT_HINT,
        )
    return int(values[0])


def _parts(module: Stub | None) -> Mapping[Any, Any]:
    parts = module.state.get("_modules") if module is not None else None
    return parts if isinstance(parts, dict) else {}
