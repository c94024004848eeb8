"""Allowed classes of Keras files: layers and operations that only compute.

Keras instantiates any of its classes that a file's configuration names. Some of them read files (`StringLookup`),
load other models (`TFSMLayer`, `TorchModuleWrapper`) or are Python code (`Lambda`); Keras's safe mode blocks only
some of these, depending on the version.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from yolotrt_core.console.text import printable
from yolotrt_core.errors import UsageError
from yolotrt_tf.formats import NAMES, Format

MAX_CONFIG_BYTES = 64 << 20  # 0.6 MB for YOLOv5x
_SUFFIXES: dict[Format, tuple[str, ...]] = {"keras": (".keras",), "hdf5": (".h5", ".hdf5")}

# Of Keras 3.15: layers; operations (`keras.ops` on a symbolic tensor); their initializers and other parts.
_LAYERS = """
    Activation Add Average AveragePooling2D BatchNormalization CenterCrop Concatenate Conv2D Conv2DTranspose Cropping1D
    Cropping2D Dense DepthwiseConv2D Dropout ELU Flatten Functional GaussianNoise GlobalAveragePooling2D
    GlobalMaxPooling2D GroupNormalization Identity InputLayer LayerNormalization LeakyReLU MaxPooling2D Maximum Minimum
    Model Multiply Normalization PReLU Permute ReLU RepeatVector Rescaling Reshape Resizing SeparableConv2D Sequential
    Softmax SpatialDropout2D Subtract UpSampling2D ZeroPadding2D
"""
_OPERATIONS = """
    Absolute Amax Amin Arange BroadcastTo Cast Ceil Clip Conv ConvTranspose Copy DepthToSpace DepthwiseConv Divide
    DivideNoNan Einsum Equal Exp ExpandDims Flip Floor FloorDivide Full GetItem Greater GreaterEqual HardSigmoid
    HardSilu HardTanh LeakyRelu Less LessEqual Log LogicalAnd LogicalNot LogicalOr Matmul Max MaxPool Mean Meshgrid Min
    Mod Moveaxis Negative NotEqual OneHot OnesLike Pad Power Prod Ravel Reciprocal Relu Relu6 Repeat Resize Round Rsqrt
    Selu Sigmoid Sign Silu Slice Softplus SpaceToDepth Split Sqrt Square Squeeze Stack StopGradient Sum Swapaxes Take
    Tanh Tile Transpose TrueDivide Unstack Where ZerosLike
"""
_PARTS = """
    Constant DTypePolicy GlorotNormal GlorotUniform HeNormal HeUniform L1 L1L2 L2 LecunNormal LecunUniform MaxNorm
    MinMaxNorm NonNeg Ones Orthogonal Policy RandomNormal RandomUniform TruncatedNormal UnitNorm VarianceScaling Zeros
    __ellipsis__ __keras_tensor__ __numpy__ __slice__ __tensor__
"""
ALLOWED = frozenset(" ".join((_LAYERS, _OPERATIONS, _PARTS)).split())
_HINT = "save the network with `model.export(FOLDER)` instead"


def refuse_classes(path: Path, form: Format) -> None:
    """Refuse a `.keras` or HDF5 file that names a class outside `ALLOWED` or links to other files.

    Raises:
        UsageError: names the class or link; also for a suffix that does not match the content, or a file without a
            model.
    """
    if path.suffix not in _SUFFIXES[form]:  # Keras uses the suffix, and a file may be valid in two formats
        raise UsageError(
            f"`{path.name}` is a {NAMES[form]}, but has another suffix",
            hint=f"rename it to `{path.stem}{_SUFFIXES[form][0]}`",
        )
    for entry in _named(_config(path, form)):
        _refuse_foreign(entry)


def _config(path: Path, form: Format) -> Any:
    if form == "hdf5":
        with h5py.File(path) as file:
            _refuse_links(file)
            text = file.attrs.get("model_config")
        if text is None:
            raise UsageError(
                f"expected a whole Keras model, found no architecture in `{path.name}`",
                hint="the file may contain only weights: save the whole model, `model.save(...)`",
            )
        return json.loads(text)
    with zipfile.ZipFile(path) as archive:
        with archive.open("model.weights.h5") as weights, h5py.File(weights) as file:
            _refuse_links(file)
        if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
            raise UsageError(f"`config.json` of `{path.name}` is larger than {MAX_CONFIG_BYTES >> 20} MiB")
        return json.loads(archive.read("config.json"))


def _named(config: Any) -> Iterator[dict[str, Any]]:
    """Yield all parts of a configuration that name a class, at any depth."""
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.values())
            if "class_name" in item:
                yield item
        elif isinstance(item, list):
            waiting.extend(item)


def _refuse_foreign(entry: dict[str, Any]) -> None:
    name, module, registered = (entry.get(key) for key in ("class_name", "module", "registered_name"))
    own = module is None or module == "keras" or (isinstance(module, str) and module.startswith("keras."))
    if isinstance(name, str) and name in ALLOWED and own and registered in (None, name):
        return
    shown = printable(f"{module}.{name}" if module else f"{name}")[:120]
    if name in ("Lambda", "__lambda__"):
        raise UsageError(
            f"unsupported layer `{shown}`: it contains Python code, which is not run",
            hint=f"replace Lambda layers, or {_HINT}",
        )
    raise UsageError(
        f"the model contains a class that is not allowed: expected only Keras's network layers, found `{shown}`; "
        "nothing was run",
        hint=f"the file may need external Python classes; {_HINT}",
    )


def _refuse_links(file: Any) -> None:
    """Refuse an HDF5 file that links to groups or data in other files."""
    waiting, seen = [file], set()
    while waiting:
        group = waiting.pop()
        for name in group:
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise UsageError(f"group `{printable(name[:80])}` of the file is an external link", hint=_HINT)
            item = group[name]
            if isinstance(item, h5py.Group):
                place = h5py.h5o.get_info(item.id).addr
                if place not in seen:
                    seen.add(place)
                    waiting.append(item)
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise UsageError(f"the data of `{printable(name[:80])}` is in another file", hint=_HINT)
