"""Weights saved alone (`torch.save(model.state_dict(), ...)`), with a structure that the user names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_torch.standard_models import STANDARD_MODELS, standard_config
from yolotrt_torch.untrusted_values import PlainCopies, shown

if TYPE_CHECKING:
    from yolotrt_torch.options import TorchOptions

MAX_YAML_BYTES = 1 << 20  # the largest official one has 2 kB
# `model.0.conv.weight`, within wrappers `module.model.0.conv.weight`, of the layers alone `0.conv.weight`.
_WEIGHT = re.compile(r"((?:[A-Za-z_]\w*\.)*)(\d+\..+)", re.ASCII)
COUNTERS = ("total_ops", "total_params")  # buffers that a count of operations (`thop`) leaves behind
_HEAD = re.compile(r"model\.(\d+)\.anchors", re.ASCII)
_OPTIONS = "`--torch-like yolov5s` for a standard model, else `--torch-yaml FILE` with the yaml it was trained with"


def normalised(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights under YOLOv5's own names, without the prefixes of wrappers.

    Raises:
        UsageError: names of another form.
    """
    weights = {k: v for k, v in weights.items() if not (isinstance(k, str) and k.rpartition(".")[2] in COUNTERS)}
    matches = {name: _WEIGHT.fullmatch(name) if isinstance(name, str) else None for name in weights}
    prefixes = {match[1] if match else None for match in matches.values()}
    if None in prefixes or len(prefixes) != 1:
        other = next((name for name, match in matches.items() if match is None), next(iter(matches), ""))
        raise UsageError(
            f"expected a YOLOv5 checkpoint, found a plain state_dict with the weight `{shown(other)}`",
            hint="expected weights such as `model.0.conv.weight`",
        )
    return {f"model.{match[2]}": weights[name] for name, match in matches.items() if match}


def config_of(state: Mapping[str, NDArray[Any]], options: TorchOptions) -> dict[str, Any]:
    """Return the yaml of weights alone, as the options name it; classes and anchors are those of the weights.

    Args:
        state: weights under YOLOv5's names.

    Raises:
        UsageError: no option was given, the yaml cannot be read, or the weights have no YOLOv5 head.
    """
    classes, anchors = _head(state)
    if options.like is None and options.yaml is None:
        raise UsageError(
            "expected a YOLOv5 checkpoint, found a plain state_dict: the weights without the architecture",
            hint=structure_hint(state, classes),
        )
    config = standard_config(options.like, classes) if options.like else _read_yaml(options.yaml)
    return {**config, "nc": classes, "anchors": anchors, "ch": _input_channels(state)}


def _input_channels(state: Mapping[str, NDArray[Any]]) -> int:
    """Return the channels of the image by the weights of the first layer, a convolution or a `Focus`."""
    for name, joined in (("model.0.conv.weight", 1), ("model.0.conv.conv.weight", 4)):
        weight = state.get(name)
        if weight is not None and weight.ndim == 4:
            return int(weight.shape[1]) // joined
    return 3


def _head(state: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """Return the numbers of classes and of anchors per level."""
    found = next((match[1] for name in state if (match := _HEAD.fullmatch(name))), None)
    anchors = state[f"model.{found}.anchors"].shape if found else ()
    weight = state.get(f"model.{found}.m.0.weight")
    if len(anchors) != 3 or weight is None or weight.ndim != 4 or not anchors[1] or weight.shape[0] % anchors[1]:
        raise UsageError(
            "expected a YOLOv5 checkpoint, found a plain state_dict without YOLOv5's detection head "
            "(`model.N.anchors`, `model.N.m.0.weight`)"
        )
    prototypes = state.get(f"model.{found}.proto.cv3.conv.weight")  # of a segmentation model
    masks = prototypes.shape[0] if prototypes is not None and prototypes.ndim else 0
    return weight.shape[0] // anchors[1] - 5 - masks, anchors[1]


def structure_hint(state: Mapping[str, NDArray[Any]], classes: Any) -> str:
    """Return which option names the structure of weights."""
    fitting = _fitting_model(state, classes)
    return f"pass `--torch-like {fitting}`, which fits these weights" if fitting else f"pass {_OPTIONS}"


def _fitting_model(state: Mapping[str, NDArray[Any]], classes: Any) -> str | None:
    """Return the standard model whose layers and widths the weights have."""
    for name in STANDARD_MODELS:
        config = standard_config(name, classes)
        lines = [*config["backbone"], *config["head"]]
        first, last = "model.0.conv.weight", f"model.{len(lines) - 1}.anchors"
        width = int(64 * config["width_multiple"])
        repeats = max(round(config["backbone"][4][1] * config["depth_multiple"]), 1)
        deepest = {n.split(".")[3] for n in state if re.match(r"model\.4\.m\.\d", n)}
        if last in state and first in state and state[first].shape[:1] == (width,) and len(deepest) == repeats:
            return name
    return None


def _read_yaml(path: Path | None) -> dict[str, Any]:
    assert path is not None
    try:
        import yaml
    except ImportError as err:
        raise UsageError("`--torch-yaml` needs PyYAML, which is not installed", hint="pip install pyyaml") from err
    try:
        with path.open("rb") as file:
            text = file.read(MAX_YAML_BYTES + 1)
    except OSError as err:
        raise UsageError(f"`--torch-yaml` names a file that cannot be read: `{path}`: {os_error_reason(err)}") from err
    if len(text) > MAX_YAML_BYTES:
        raise UsageError(f"`{path}` is larger than {MAX_YAML_BYTES >> 20} MiB, expected a YOLOv5 model yaml")
    try:
        found = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as err:
        raise UsageError(f"`{path}` is not valid YAML: {' '.join(str(err).split())[:200]}") from err
    config = PlainCopies().copy(found, "model yaml")
    if not isinstance(config, dict) or "backbone" not in config:
        raise UsageError(f"`{path}` has no `backbone`", hint="expected a YOLOv5 model yaml, such as `yolov5s.yaml`")
    return config
