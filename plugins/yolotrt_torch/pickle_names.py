"""Which names a checkpoint's pickle may contain, and the errors for the others.

A name is only recorded, never imported or called, whatever its kind.
"""

from __future__ import annotations

import re
import sys

from yolotrt_core.console.text import printable
from yolotrt_core.errors import UsageError

EXPORT_HINT = (
    "yolotrt reads models of YOLOv5's own classes. If you trust the file, export it to ONNX in the environment that "
    "has the model's code (for example `python export.py --weights best.pt --include onnx`), then pass the result: "
    "`--weights best.onnx`"
)

# Classes and functions of YOLOv5 checkpoints and of values that are saved beside the model.
ALLOWED = re.compile(
    r"""
      (__builtin__|builtins)\.(set|frozenset|dict|list|tuple|str|unicode|int|long|float|bool|complex)
    | (__builtin__|builtins)\.(bytes|bytearray|x?range|slice|object|getattr)
    | collections\.(OrderedDict|defaultdict|Counter|deque) | copy_?reg\._reconstructor
    | types\.SimpleNamespace | argparse\.Namespace | pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path
    | datetime\.(datetime|date|time|timedelta|timezone) | fractions\.Fraction | decimal\.Decimal | uuid\.UUID
    | easydict\.EasyDict | addict\.addict\.Dict
    | torch\.(Tensor|Size|device|\w+Storage|[a-z]*float\d+|complex\d+|u?int\d+|bool|half|double|long)
    | torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state) | torch\._tensor\._rebuild_from_type_v2
    | torch\.storage\.(Untyped|Typed)Storage | torch\.nn\.parameter\.Parameter
    | torch\.nn\.modules\.\w+\.\w+ | torch\.optim\.\w+\.\w+
    | torch\.nn\.parallel\.(data_parallel\.DataParallel|distributed\.\w+) | torch\.distributed\.algorithms\.join\.\w+
    | torch\.nn\.utils\.prune\.[A-Z]\w+ | torch\.(cuda\.)?amp\.grad_scaler\.(GradScaler|OptState)
    | numpy\.(ndarray|dtype) | numpy\.(core|_core)\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)
    | numpy\.dtypes\.\w+ | _codecs\.encode
    | (yolov5\.)?(models|utils)(\.[A-Za-z]\w*)+ | torchvision\.(models|transforms|ops)(\.\w+)+
    """,
    re.VERBOSE | re.ASCII,
)

# Code of other packages that runs commands or code, or reads further pickles. All other modules of Python's standard
# library count as such, too.
_DANGEROUS = re.compile(
    r"""
      torch\.(load|hub|jit|serialization|package|utils\.(cpp_extension|bottleneck|collect_env|data|_config_module))\b.*
    | torch\.(_dynamo|_inductor|distributed|multiprocessing|testing|fx)\b.* | torch\.storage\._load_from_bytes
    | numpy\.(load|loads|testing|f2py|distutils|core\._internal|lib\.\w*npyio)\b.*
    | (dill|cloudpickle|joblib|pandas|pip|setuptools|pkg_resources|IPython|ipykernel|requests|aiohttp)\b.*
    | (commands|popen2|imp|distutils|asynchat|asyncore|telnetlib|cffi|httpx|fabric|invoke|sh|pexpect|plumbum|pty)\b.*
    | (__builtin__|nt|posix|_posixsubprocess|_winapi|_pickle|cPickle|urllib2|httplib)\b.*
    | .+\.__\w+__\b.* | .*\.(eval|exec|system|popen|Popen|import_module)
    """,
    re.VERBOSE | re.ASCII,
)
MAX_NAME = 300  # characters
_NAME = re.compile(r"\w+(\.\w+)+")
_NESTED = re.compile(r"[A-Z]\w*(\.[A-Z]\w*)*(\.(forward|forward_fuse|fuseforward))?", re.ASCII)
_FUNCTION = re.compile(r"(yolov5|models|utils|torchvision|torch\.(nn|optim|distributed))\..*\b_*[a-z]\w*", re.ASCII)
_HARMLESS_MODULES = frozenset({"collections", "datetime", "decimal", "enum", "logging", "pathlib", "re", "threading"})


class RefusedGlobal(UsageError):  # noqa: N818 - says what it is
    """The pickle contains a name that can run code, `name`."""

    def __init__(self, name: str) -> None:
        name = printable(name[:120])
        super().__init__(
            f"refused: the pickle contains `{name}`, which is not allowed in a YOLOv5 checkpoint; it can run code when "
            "the file is loaded by other tools; nothing was executed",
            hint="do not load this file with other tools unless you trust its origin",
        )
        self.name = name


class UnknownClass(UsageError):  # noqa: N818 - says what it is
    """The pickle contains classes or functions of other code, `names`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        names = tuple(printable(name[:120]) for name in names)
        listed = ", ".join(f"`{name}`" for name in names[:4]) + ", ..." * (len(names) > 4)
        super().__init__(
            f"the checkpoint contains {listed}, which YOLOv5 does not have: the model, or something saved with it, is "
            "of other code, for example of a fork",
            hint=EXPORT_HINT,
        )
        self.names = names


def is_allowed(module: str, name: str) -> bool:
    """Check a name of the pickle.

    Returns:
        True if it is recorded; False if it is of other code.

    Raises:
        RefusedGlobal: it can run code.
    """
    whole = f"{module}.{name}"
    # A name with dots is looked up step by step, through whatever the module imports: `models.common`, `os.system`.
    if len(whole) > MAX_NAME or ("." in name and not _NESTED.fullmatch(name)):
        raise RefusedGlobal(whole)
    if ALLOWED.fullmatch(whole):
        return True
    top = module.partition(".")[0]
    is_standard = top in sys.stdlib_module_names and top not in _HARMLESS_MODULES
    if _DANGEROUS.fullmatch(whole) or is_standard or not _NAME.fullmatch(whole):
        raise RefusedGlobal(whole)
    return False


def refuse_call(name: str) -> None:
    """Refuse to record a call of a function of YOLOv5 or PyTorch; classes are called to create objects.

    Raises:
        RefusedGlobal: it is a function.
    """
    if _FUNCTION.fullmatch(name):
        raise RefusedGlobal(name)
