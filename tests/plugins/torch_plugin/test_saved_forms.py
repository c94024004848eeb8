"""The forms that people save models in: wrappers, NumPy values, pruned models, weights alone, archives zipped again."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import fractions
import sys
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import upstream_layout as layout
import yaml
from torch import nn
from torch.nn.utils import prune

from yolotrt_core.errors import UsageError
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.checkpoint_archive import open_archive
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.stages import TorchExporter, is_checkpoint
from yolotrt_torch.standard_models import STANDARD_MODELS, standard_config
from yolotrt_torch.yolov5_model import Network

CONFIG = layout.MODERN


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> Network:
    return layout.lively(CONFIG)


@pytest.fixture(scope="module")
def expected(network: Network, image: torch.Tensor) -> np.ndarray:
    return answer(network, image)


def answer(network: nn.Module, image: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(image).numpy()


def read_answer(path: Path, image: torch.Tensor, options: TorchOptions | None = None) -> np.ndarray:
    return answer(network_from_checkpoint(read_checkpoint(path, options)), image)


class _Holder(nn.Module):
    """A module with one part, saved under the name of a wrapper's class."""

    def __init__(self, name: str, part: Any) -> None:
        super().__init__()
        self.add_module(name, part) if isinstance(part, nn.Module) else setattr(self, name, part)


def _wrapper(monkeypatch: pytest.MonkeyPatch, module: str, name: str, attribute: str) -> Callable[[Any], Any]:
    made = type(name, (_Holder,), {"__module__": module})
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        package = ".".join(parts[:depth])
        monkeypatch.setitem(sys.modules, package, sys.modules.get(package) or types.ModuleType(package))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return lambda model: made(attribute, model)


@pytest.mark.parametrize(
    ("module", "name", "attribute"),
    [
        ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
        ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
        ("yolov5.models.common", "AutoShape", "model"),
        ("yolov5.models.experimental", "Ensemble", "0"),
        ("yolov5.utils.torch_utils", "ModelEMA", "ema"),
    ],
)
def test_the_model_in_a_wrapper_is_read(
    module: str, name: str, attribute: str, network: Network, tmp_path: Path, monkeypatch: Any
) -> None:
    wrap = _wrapper(monkeypatch, module, name, attribute)
    for saved in (wrap, lambda m: {"model": wrap(m)}, lambda m: {"model": nn.Identity(), "ema": wrap(m), "updates": 3}):
        path = layout.save(tmp_path / "m.pt", CONFIG, network=network, wrap=saved)
        checkpoint = read_checkpoint(path)
        assert checkpoint.labels == tuple(NAMES)
        assert checkpoint.modules.keys() == {name for name, _ in network.named_modules()}
        assert checkpoint.state.keys() == network.state_dict().keys()
        for weight, value in network.state_dict().items():
            assert np.array_equal(checkpoint.state[weight], value.numpy())


def test_ensembles_and_endless_wrappers_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    two = _wrapper(monkeypatch, "yolov5.models.experimental", "Ensemble", "0")
    path = layout.save(tmp_path / "m.pt", wrap=lambda m: _with_part(two(m), "1", m))
    with pytest.raises(UsageError, match="an ensemble of 2 models"):
        read_checkpoint(path)
    loop = nn.DataParallel(nn.Identity())
    loop._modules["module"] = loop
    torch.save({"model": loop}, path)
    with pytest.raises(UsageError, match="more than 8 wrappers"):
        read_checkpoint(path)
    loop._modules["module"] = "text"
    torch.save({"model": loop}, path)
    with pytest.raises(UsageError, match=r"DataParallel` contains no model"):
        read_checkpoint(path)


def _with_part(module: nn.Module, name: str, part: Any) -> nn.Module:
    module._modules[name] = part
    return module


def _set(**values: Any) -> Callable[[Any], None]:
    return lambda model: [setattr(model, name, value) for name, value in values.items()] and None


def _yaml(**values: Any) -> Callable[[Any], None]:
    return lambda model: model.yaml.update(values)


NAMES = np.array(["kind 0", "kind 1", "kind 2"])
HYPERPARAMETERS = {
    "namespace": types.SimpleNamespace(lr0=0.01),
    "arguments": argparse.Namespace(imgsz=640, save_dir=Path("runs")),
    "time": datetime.datetime(2026, 1, 2),
    "counts": collections.defaultdict(int, {(1, 2): 3}),
    "others": [fractions.Fraction(1, 2), 1j, range(3), frozenset([1]), bytearray(b"a"), torch.float16, np.float16(1)],
    "size": torch.Size([1]),
    "device": torch.device("cpu"),
}
VALUES: Mapping[str, Callable[[Any], None]] = {
    "names as texts": _set(names=NAMES),
    "names as objects": _set(names=NAMES.astype(object)),
    "names as bytes": _set(names=NAMES.astype("S6")),
    "names as scalars": _set(names=list(NAMES)),
    "names by scalars": _set(names={np.int64(i): str(name) for i, name in enumerate(NAMES)}),
    "names in a defaultdict": _set(names=collections.defaultdict(str, enumerate(map(str, NAMES)))),
    **{f"nc as {kind}": _yaml(nc=getattr(np, kind)(3)) for kind in ("int64", "int32", "uint8", "int8")},
    "nc as array": _yaml(nc=np.array(3)),
    "nc as tensor": _yaml(nc=torch.tensor(3)),
    "attributes": lambda m: (
        [setattr(m.model[-1], k, np.int64(v)) for k, v in (("nc", 3), ("no", 8), ("na", 3))] and None
    ),
    "anchors": _yaml(anchors=np.array(CONFIG["anchors"])),
    "anchors by level": _yaml(anchors=[np.array(a, np.float32) for a in CONFIG["anchors"]]),
    "anchors of another byte order": _yaml(anchors=np.array(CONFIG["anchors"]).astype(">i4")),
    "anchors in Fortran's order": _yaml(anchors=np.asfortranarray(CONFIG["anchors"])),
    "multiples": _yaml(depth_multiple=np.float64(0.33), width_multiple=np.float32(0.25)),
    "yaml as namespace": lambda m: setattr(m, "yaml", types.SimpleNamespace(**m.yaml)),
    "yaml with a path": _yaml(yaml_file=Path("models/yolov5n.yaml")),
    "hyperparameters": _set(hyp=HYPERPARAMETERS),
    "hyperparameters as namespace": _set(hyp=types.SimpleNamespace(**HYPERPARAMETERS)),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind", list(VALUES))
def test_values_of_numpy_and_namespaces_are_read(
    kind: str, protocol: int, network: Network, image: torch.Tensor, expected: np.ndarray, tmp_path: Path
) -> None:
    path = layout.save(tmp_path / "m.pt", dict(CONFIG), network=network, edit=VALUES[kind], protocol=protocol)
    checkpoint = read_checkpoint(path)
    assert checkpoint.labels == tuple(NAMES)
    config = {name: value for name, value in checkpoint.config.items() if name != "yaml_file"}
    assert config == {name: pytest.approx(v) if isinstance(v, float) else v for name, v in CONFIG.items()}
    if protocol == 2:
        assert np.array_equal(answer(network_from_checkpoint(checkpoint), image), expected)


HOSTILE: Mapping[str, tuple[Any, str]] = {
    "complex": (np.array([1j]), "a NumPy array of the type `c16`"),
    "dates": (np.array(["2026-01-01"], "M8[D]"), "a NumPy array of the type `M8`"),
    "records": (np.zeros(1, [("a", "i4")]), "a NumPy array of the type `V4`"),
    "objects": (np.array([{"a": 1}, argparse], object)[:1].reshape(1, 1), "array of objects of an unknown form"),
    "large": (np.zeros(1_000_001, "i1"), "a NumPy array that is too large"),
    "a scalar of another type": (np.complex64(1), "holds a `numpy.scalar`"),
    "a tensor": (torch.zeros(600_000), "class names is too large"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_numpy_values_of_other_types_are_refused(kind: str, network: Network, tmp_path: Path) -> None:
    value, message = HOSTILE[kind]
    path = layout.save(tmp_path / "m.pt", network=network, edit=_set(names=value))
    with pytest.raises(UsageError, match=message):
        read_checkpoint(path)


class _Forged:
    """An array whose pickle states what its data does not hold."""

    def __init__(self, shape: Any, code: str, data: Any) -> None:
        self.state = (1, shape, np.dtype(code), False, data)

    def __reduce__(self) -> Any:
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    ("shape", "code", "data", "message"),
    [
        ((1 << 40,), "i1", b"", "too large"),
        ((1 << 20, 1 << 20), "i1", b"", "too large"),
        ((0, 1 << 40), "i1", b"", "too large"),
        ((-1,), "i1", b"", "too large"),
        ((1,) * 40, "i1", b"\0", "of an unknown form"),
        ([1], "i1", b"\0", "of an unknown form"),
        ((2,), "i4", b"\0" * 4, "size differs from its data"),
        ((1,), "U99999", b"a", "size differs from its data"),
        ((2,), "O", ["a"], "array of objects of an unknown form"),
        ((1,), "O", "a", "a NumPy array of the type `O8`"),
    ],
)
def test_arrays_whose_size_is_a_lie_cost_nothing(
    shape: Any, code: str, data: Any, message: str, tmp_path: Path
) -> None:
    path = layout.save(tmp_path / "m.pt", edit=_set(names=_Forged(shape, code, data)))
    with pytest.raises(UsageError, match=message):
        read_checkpoint(path)


def test_a_namespace_is_a_record_of_its_values(network: Network, tmp_path: Path) -> None:
    """`__class__`, `__dict__` and methods in a namespace's state are values like any other."""
    space = types.SimpleNamespace(__class__="os", __dict__={"a": 1}, __globals__=[1], names=3)
    path = layout.save(tmp_path / "m.pt", network=network, edit=_set(hyp=space))
    checkpoint = read_checkpoint(path)
    assert checkpoint.labels == tuple(NAMES)
    assert checkpoint.state.keys() == network.state_dict().keys()


def _convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def _prune_twice(model: Any) -> None:
    prune.l1_unstructured(model.model[1].conv, "weight", 0.3)
    prune.random_unstructured(model.model[1].conv, "weight", 0.3)


MASKS: Mapping[str, Callable[[Any], Any]] = {
    "one": lambda m: prune.l1_unstructured(m.model[1].conv, "weight", 0.3),
    "all": lambda m: [prune.random_unstructured(conv, "weight", 0.4) for conv in _convolutions(m)],
    "global": lambda m: prune.global_unstructured(
        [(conv, "weight") for conv in _convolutions(m)], prune.L1Unstructured, amount=0.3
    ),
    "channels": lambda m: prune.ln_structured(m.model[3].conv, "weight", 0.5, 2, 0),
    "biases": lambda m: prune.l1_unstructured(m.model[-1].m[0], "bias", 3),
    "twice": _prune_twice,
    "none": lambda m: prune.identity(m.model[1].conv, "weight"),
}


@pytest.mark.parametrize("kind", list(MASKS))
@pytest.mark.parametrize("form", ["model", "state_dict"])
def test_pruning_masks_are_applied(kind: str, form: str, network: Network, image: torch.Tensor, tmp_path: Path) -> None:
    """As PyTorch's own `prune.remove` makes them permanent."""
    torch.manual_seed(3)
    pruned = copy.deepcopy(network)
    MASKS[kind](pruned)
    path, options = tmp_path / "m.pt", None
    if form == "model":
        # The layout's copy of modules has no hooks: prune it by itself, then give it the same masks.
        path = layout.save(path, network=network, edit=lambda model: _prune_alike(model, pruned, MASKS[kind]))
    else:
        torch.save(pruned.state_dict(), path)
        options = TorchOptions(yaml=_write_yaml(tmp_path))
    for module in pruned.modules():
        for name in ("weight", "bias"):
            if hasattr(module, f"{name}_mask"):
                prune.remove(module, name)
    assert np.array_equal(read_answer(path, image, options), answer(pruned, image))


def _prune_alike(model: Any, pruned: nn.Module, mask: Callable[[Any], Any]) -> None:
    mask(model)
    masks = {name: buffer for name, buffer in pruned.named_buffers() if name.endswith("_mask")}
    buffers = dict(model.named_buffers())
    assert masks.keys() == {name for name in buffers if name.endswith("_mask")}
    for name, value in masks.items():
        buffers[name].copy_(value)


def _write_yaml(folder: Path, config: Mapping[str, Any] = CONFIG) -> Path:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        prune.identity(model.model[1].conv, "weight")
        model.model[1].conv.weight_mask = torch.ones(1)

    with pytest.raises(UsageError, match=r"pruning mask of weight `model.1.conv.weight` .* has shape \[1\]"):
        read_checkpoint(layout.save(tmp_path / "m.pt", edit=edit))


def _keep(block: Any, kept: Sequence[int]) -> None:
    """Keep some output channels of a convolution with its norm."""
    block.conv.weight = nn.Parameter(block.conv.weight[kept])
    block.conv.out_channels = block.bn.num_features = len(kept)
    for name in ("weight", "bias"):
        setattr(block.bn, name, nn.Parameter(getattr(block.bn, name)[kept]))
    for name in ("running_mean", "running_var"):
        setattr(block.bn, name, getattr(block.bn, name)[kept])


def _keep_inputs(conv: Any, kept: Sequence[int]) -> None:
    conv.weight, conv.in_channels = nn.Parameter(conv.weight[:, kept]), len(kept)


@pytest.mark.parametrize("form", ["model", "state_dict"])
def test_removed_channels_answer_as_channels_that_nothing_reads(
    form: str, network: Network, image: torch.Tensor, tmp_path: Path
) -> None:
    network = copy.deepcopy(network)

    def readers(model: Any) -> list[tuple[Any, list[Any]]]:
        block = model.model[2]
        return [
            (model.model[0], [model.model[1].conv]),
            (model.model[1], [block.cv1.conv, block.cv2.conv]),
            (block.m[0].cv1, [block.m[0].cv2.conv]),
        ]

    def edit(model: Any) -> None:
        for block, convs in readers(model):
            kept = range(0, block.conv.out_channels, 2)
            _keep(block, kept)
            for conv in convs:
                _keep_inputs(conv, kept)

    small = copy.deepcopy(network)
    for _, convs in readers(network):
        for conv in convs:
            conv.weight.data[:, 1::2] = 0
    expected = answer(network, image)
    options = None
    if form == "model":
        path = layout.save(tmp_path / "m.pt", network=network, edit=edit)
    else:
        edit(small)
        path, options = tmp_path / "m.pt", TorchOptions(yaml=_write_yaml(tmp_path))
        torch.save(small.state_dict(), path)
    found = read_answer(path, image, options)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_buffers_that_layers_do_not_have_are_ignored(
    network: Network, image: torch.Tensor, expected: np.ndarray, tmp_path: Path, caplog: Any
) -> None:
    def edit(model: Any) -> None:
        for module in model.modules():  # as `thop` leaves them
            module.register_buffer("total_ops", torch.zeros(1))
            module.register_buffer("total_params", torch.zeros(1))

    path = layout.save(tmp_path / "m.pt", network=network, edit=edit)
    assert np.array_equal(read_answer(path, image), expected)
    assert not caplog.records
    path = layout.save(path, network=network, edit=lambda m: m.model[3].register_buffer("version", torch.tensor(2)))
    assert np.array_equal(read_answer(path, image), expected)
    assert "ignored 1 buffer that YOLOv5's layers do not have: ['model.3.version']" in caplog.text


# Parameters that upstream's package counts in its models of 80 classes (yolov5 7.0.14, `sum(p.numel())`).
PARAMETERS = {
    "yolov5n": 1872157,
    "yolov5s": 7235389,
    "yolov5m": 21190557,
    "yolov5l": 46563709,
    "yolov5x": 86749405,
    "yolov5n6": 3246940,
    "yolov5s6": 12626620,
    "yolov5x6": 140794780,
}


def test_standard_structures_have_upstreams_parameters() -> None:
    assert PARAMETERS.keys() < set(STANDARD_MODELS)
    for name, count in PARAMETERS.items():
        with torch.device("meta"):
            network = Network(standard_config(name, 80))
        assert sum(p.numel() for p in network.parameters()) == count
        assert network.stride == ((8, 16, 32, 64) if name.endswith("6") else (8, 16, 32))


def test_weights_alone_answer_as_the_checkpoint_they_are_of(data: Path, image: torch.Tensor, tmp_path: Path) -> None:
    whole = read_checkpoint(data / "weights/yolov5n.pt")
    expected = answer(network_from_checkpoint(whole), image)
    weights = {name: torch.from_numpy(array) for name, array in whole.state.items()}
    path, like = tmp_path / "m.pt", TorchOptions(like="yolov5n")
    forms = [
        weights,
        {f"module.{name}": value for name, value in weights.items()},
        {name.removeprefix("model."): value for name, value in weights.items()},
        {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
        {"state_dict": weights},
    ]
    for form in forms:
        torch.save(form, path)
        found = read_checkpoint(path, like)
        assert found.state.keys() == whole.state.keys()
        assert all(np.array_equal(found.state[name], array) for name, array in whole.state.items())
        with pytest.raises(UsageError, match="a plain state_dict: the weights without the architecture") as caught:
            read_checkpoint(path)
        assert caught.value.hint == "pass `--torch-like yolov5n`, which fits these weights"
    assert np.array_equal(read_answer(path, image, like), expected)
    described = TorchOptions(yaml=_write_yaml(tmp_path, whole.config))
    assert np.array_equal(read_answer(path, image, described), expected)
    with pytest.raises(UsageError) as caught:
        read_answer(path, image, TorchOptions(like="yolov5m"))
    assert caught.value.hint == "pass `--torch-like yolov5n`, which fits these weights"


def test_names_of_weights_alone(tmp_path: Path, caplog: Any) -> None:
    path, names = tmp_path / "m.pt", tmp_path / "names.txt"
    torch.save(layout.lively(CONFIG).state_dict(), path)
    described = _write_yaml(tmp_path)
    assert read_checkpoint(path, TorchOptions(yaml=described)).labels == ("class0", "class1", "class2")
    assert "numbering them; pass the class names with `--torch-names FILE`" in caplog.text
    caplog.clear()
    names.write_text("cat\ndog\nhen\n")
    assert read_checkpoint(path, TorchOptions(yaml=described, names=names)).labels == ("cat", "dog", "hen")
    assert read_checkpoint(layout.save(path), TorchOptions(names=names)).labels == ("cat", "dog", "hen")
    assert not caplog.records
    names.write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=r"the model has 3 classes, but `.*names.txt` has names for 2"):
        read_checkpoint(path, TorchOptions(names=names))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "`--torch-yaml` names a file that cannot be read"),
        ("[1, 2", "is not valid YAML"),
        ("nc: 3", "has no `backbone`"),
        ("backbone: !!python/object/apply:os.system ['touch ran']", "is not valid YAML"),
        ("a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\n" + "x" * (1 << 20), "is larger than 1 MiB"),
        (
            "a: &x0 [0]\n"
            + "".join(f"b{i}: &x{i + 1} [{', '.join([f'*x{i}'] * 20)}]\n" for i in range(7))
            + "backbone: []",
            "model yaml is too large",
        ),
        ("backbone: []\nhead: []", "0 layers"),
    ],
)
def test_a_yaml_that_describes_no_model(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(layout.lively(CONFIG).state_dict(), path)
    if text is not None:
        (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        network_from_checkpoint(read_checkpoint(path, TorchOptions(yaml=tmp_path / "m.yaml")))


def test_the_structure_is_named_once(tmp_path: Path) -> None:
    described = _write_yaml(tmp_path)
    with pytest.raises(UsageError, match="both name the structure"):
        TorchExporter().check_options(TorchOptions(like="yolov5n", yaml=described))
    path = layout.save(tmp_path / "m.pt")
    for options in (TorchOptions(like="yolov5n"), TorchOptions(yaml=described)):
        with pytest.raises(UsageError, match="is for a plain state_dict, but the file has a model with its own"):
            read_checkpoint(path, options)


Entries = list[tuple[str, bytes]]
ZIPPED: Mapping[str, Callable[[Entries], Entries]] = {
    "as it was": lambda entries: entries,
    "another folder": lambda entries: [(name.replace("archive/", "my model/"), c) for name, c in entries],
    "sorted": sorted,
    "reversed": lambda entries: entries[::-1],
    "with folders": lambda entries: [("archive/", b""), ("archive/data/", b""), *entries],
    "by macOS": lambda entries: [*entries, ("archive/.DS_Store", b"x"), ("__MACOSX/archive/._data.pkl", b"\0\5")],
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", list(ZIPPED))
def test_archives_zipped_again_are_read(kind: str, compression: int, tmp_path: Path) -> None:
    path, again = tmp_path / "archive.pt", tmp_path / "again.pt"
    torch.save({"a": torch.arange(1000.0), "b": torch.zeros(70_000, dtype=torch.half)}, path)
    with zipfile.ZipFile(path) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    with zipfile.ZipFile(again, "w", compression) as file:
        for name, content in ZIPPED[kind](entries):
            file.writestr(name, content)
    assert is_checkpoint(again)
    if kind != "by macOS":  # which PyTorch refuses for its second folder
        assert torch.load(again, weights_only=True).keys() == {"a", "b"}
    expected = torch.load(path, weights_only=True)
    with open_archive(again) as archive:
        for name, tensor in expected.items():
            assert np.array_equal(archive.array(archive.root[name]), tensor.numpy())
