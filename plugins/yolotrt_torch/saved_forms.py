"""The forms in which models are saved: bare, in a training's dict, in wrappers, as weights only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from yolotrt_core.errors import UsageError
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.pickle_records import Stub, TensorRef
from yolotrt_torch.untrusted_values import shown

PT_HINT = "pass the `.pt` file that YOLOv5's training wrote"
MAX_WRAPPERS = 8
# Where a wrapper has its model: among its modules, else among its attributes.
_WRAPPERS = {
    r"torch\.nn\.parallel\.data_parallel\.DataParallel": "module",
    r"torch\.nn\.parallel\.distributed\.DistributedDataParallel": "module",
    r"(yolov5\.)?models\.common\.([aA]utoShape|DetectMultiBackend)": "model",
    r"(yolov5\.)?utils\.torch_utils\.ModelEMA": "ema",
}
_ENSEMBLE = re.compile(r"(yolov5\.)?models\.experimental\.Ensemble")
_WEIGHT_KEYS = ("ema", "model", "state_dict", "model_state_dict", "ema_state_dict", "module", "net", "weights")


def select_model(root: Any) -> tuple[Stub, str]:
    """Return the model to use, without wrappers, preferably the averaged weights (`ema`), and its key.

    Raises:
        UsageError: no model of YOLOv5's form; names what was found.
    """
    if isinstance(root, Stub):
        return unwrapped(root), "model"
    if not isinstance(root, dict):
        found = "tensor" if isinstance(root, TensorRef) else f"`{type(root).__name__}`"
        raise UsageError(f"expected a YOLOv5 checkpoint, found a saved {found}", hint=PT_HINT)
    ema = root.get("ema")
    if isinstance(ema, (tuple, list)) and ema:  # v4 and older: (model, number of updates)
        ema = ema[0]
    if isinstance(ema, Stub):
        return unwrapped(ema), "ema"
    model = root.get("model")
    if isinstance(model, Stub):
        return unwrapped(model), "model"
    if model is not None:
        raise UsageError(
            f"expected a YOLOv5 checkpoint with a model as its `model`, found {shown(model)} there", hint=PT_HINT
        )
    keys = ", ".join(f"`{shown(k)[:20]}`" for k in list(root)[:5])
    raise UsageError(
        f"expected a YOLOv5 checkpoint with a `model`, found a dict with {keys or 'nothing'}", hint=PT_HINT
    )


def unwrapped(model: Stub) -> Stub:
    """Return the model within wrappers such as `DataParallel`.

    Raises:
        UsageError: a wrapper without a model, or an ensemble of several models.
    """
    for _ in range(MAX_WRAPPERS):
        parts = model.state.get("_modules")
        modules: dict[Any, Any] = parts if isinstance(parts, dict) else {}
        key = next((key for kind, key in _WRAPPERS.items() if re.fullmatch(kind, model.kind, re.ASCII)), None)
        if key is not None:
            inner = modules.get(key, model.state.get(key))
        elif _ENSEMBLE.fullmatch(model.kind):
            if len(modules) != 1:
                raise UsageError(
                    f"the checkpoint is an ensemble of {len(modules)} models", hint="save and build each model alone"
                )
            inner = next(iter(modules.values()))
        else:
            return model
        if not isinstance(inner, Stub):
            raise UsageError(f"the checkpoint's `{model.kind}` contains no model", hint=PT_HINT)
        model = inner
    raise UsageError(f"the checkpoint's model is in more than {MAX_WRAPPERS} wrappers", hint=PT_HINT)


def refuse_other_task(model: Stub) -> None:
    """Refuse a network of torchvision, which YOLOv5's classification trains as well.

    Raises:
        UsageError: it is one.
    """
    owner, _, short = model.kind.rpartition(".")
    if owner.startswith("torchvision.models."):
        task = next((task for task in ("detection", "segmentation", "video") if f".{task}." in model.kind), None)
        raise UsageError(
            f"expected a YOLOv5 model, found a {task or 'classification'} model of torchvision (`{short}`)",
            hint=EXPORT_HINT,
        )


def find_weights(root: Any) -> Mapping[str, TensorRef] | None:
    """Return a state_dict that is saved alone or under a usual key, None if a model is saved."""
    if not isinstance(root, dict) or any(isinstance(root.get(key), (Stub, list, tuple)) for key in ("ema", "model")):
        return None
    for candidate in (root, *(root.get(key) for key in _WEIGHT_KEYS)):
        if isinstance(candidate, dict) and candidate and all(isinstance(v, TensorRef) for v in candidate.values()):
            return candidate
    return None
