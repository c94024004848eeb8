"""Parity check of an exported ONNX against its framework, on the exporter's reference input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.options import option
from yolotrt_core.plugin.stages import Session
from yolotrt_core.serialization import to_json
from yolotrt_core.types import Json, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray


TOLERANCE = 1e-4
# Different kernels and fusions round differently. Measured for YOLOv5n in fp16: 1.7e-4 at 160 pixels, 1.0e-4 at 640.
# The tolerance is four rounding errors (2^-11, bf16 2^-8).
ROUNDED: dict[Precision, float] = {"fp16": 2e-3, "bf16": 1.6e-2}


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """Tolerance of the parity check."""

    tolerance: float | None = option(
        None,
        help="Maximum relative L2 error of the ONNX against its framework, per output; default 1e-4, or 2e-3 for an "
        "fp16 model",
        minimum=0.0,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of one output from its reference.

    Attributes:
        relative_l2: ||found - expected|| / ||expected||. max_abs: maximum absolute difference.
        worst_index: its index. expected, found: the two values at this index.
    """

    output: str
    relative_l2: float
    max_abs: float
    worst_index: tuple[int, ...]
    expected: float
    found: float


def compare(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> list[Difference]:
    """Compare outputs by name in float64, worst first.

    Raises:
        StageError: an output is missing or has another shape.
    """
    import numpy as np

    differences = []
    for name, reference in expected.items():
        if name not in found or found[name].shape != reference.shape:
            have = tuple(found[name].shape) if name in found else "none"
            raise StageError(f"parity: output `{name}` should have shape {tuple(reference.shape)}, found {have}")
        want, got = reference.astype(np.float64), found[name].astype(np.float64)
        error = np.abs(got - want)
        # NaN compares false with everything: count it as an infinite error.
        error[~np.isfinite(error)] = np.inf
        worst = np.unravel_index(int(np.argmax(error)), error.shape)
        norm = float(np.linalg.norm(want)) or 1.0
        differences.append(
            Difference(
                output=name,
                relative_l2=float(np.linalg.norm(error) / norm),
                max_abs=float(error[worst]),
                worst_index=tuple(int(i) for i in worst),
                expected=float(want[worst]),
                found=float(got[worst]),
            )
        )
    return sorted(differences, key=lambda d: -d.relative_l2)


def check(session: Session, reference: Path, options: ParityOptions) -> Mapping[str, Json]:
    """Run the reference input and compare; the result is stored in the record.

    Args:
        session: session of the ONNX. reference: the exporter's `reference.npz`: `images`, the float32 input, the
            framework's outputs by name, and `tolerance` if the framework itself rounds more than the option allows.

    Raises:
        StageError: the error of an output exceeds the tolerance.
    """
    import numpy as np

    with np.load(reference, allow_pickle=False) as arrays:
        expected = {name: arrays[name] for name in arrays.files}
    images = expected.pop("images")
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    limit = max(tolerance, float(expected.pop("tolerance", tolerance)))
    differences = compare(expected, session.infer(images))
    worst = differences[0]
    if not worst.relative_l2 <= limit:
        raise StageError(
            f"parity check failed: the relative L2 error of output `{worst.output}` is "
            f"{worst.relative_l2:.3g} (tolerance {limit:g}), maximum at {list(worst.worst_index)}: "
            f"expected {worst.expected:.6g}, found {worst.found:.6g}",
            hint="try another exporter option or opset, or raise `--parity-tolerance`",
        )
    return {
        "tolerance": limit,
        "outputs": [to_json(d) for d in differences],
        "input_shape": list(images.shape),
    }
