"""The calibrator `import`: existing ranges, checked against the network."""

from __future__ import annotations

import logging
from pathlib import Path

from yolotrt_calibrators import activation_runner
from yolotrt_core.calibration.ranges import Ranges, amax_of_int8_scale, read_ranges, write_ranges
from yolotrt_core.calibration.tensorrt_cache import is_cache, parse_cache
from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_core.plugin.stages import RANGES_FILE
from yolotrt_core.types import OnnxModel

_log = logging.getLogger(__name__)


def import_ranges(model: OnnxModel, file: Path, out: Path) -> str:
    """Write `out/ranges.json` from a ranges file or a TensorRT calibration cache.

    A ranges file must be of exactly this ONNX. A cache does not identify its network, so it must contain every
    tensor that a convolution reads.

    Raises:
        UsageError: the file cannot be read, has another format, or belongs to another network.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as err:
        raise UsageError(f"cannot read `{file}`: {os_error_reason(err)}") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"`{file}` is neither a ranges file nor a TensorRT calibration cache") from err
    ranges = _from_cache(model, text, str(file)) if is_cache(text) else read_ranges(file).for_model(model.sha256)
    write_ranges(out / RANGES_FILE, ranges)
    return ranges.method


def _from_cache(model: OnnxModel, text: str, where: str) -> Ranges:
    cache = parse_cache(text, where)
    network = activation_runner.load(model.path)
    own = {name for node in network.graph.node for name in node.output} | {v.name for v in network.graph.input}
    known = {name: amax_of_int8_scale(scale) for name, scale in cache.scales.items() if name in own}
    missing = [name for name in activation_runner.find_targets(network, "convolutions") if name not in known]
    if missing:
        raise UsageError(
            f"`{where}` has no scale for `{missing[0]}`" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            hint="use the cache of this network, with the tensor names of its ONNX",
        )
    if len(known) < len(cache.scales):
        _log.info("%d tensors of `%s` are not in this network", len(cache.scales) - len(known), where)
    return Ranges(model.sha256, f"TensorRT {cache.algorithm}", known)
