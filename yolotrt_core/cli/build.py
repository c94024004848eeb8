"""`build`: from a model to an engine."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolotrt_core.api import Engine, build_engine
from yolotrt_core.build.settings import MOST_PIXELS, STRIDE, BuildSettings
from yolotrt_core.calibration.images import DEFAULT_IMAGES
from yolotrt_core.cli.tasks import Flag, Given, given_stage_flags, make_task, option_help, stage_flags
from yolotrt_core.console.text import nearest
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.accuracy_gate import GateOptions
from yolotrt_core.export.parity import ParityOptions
from yolotrt_core.files.paths import user_path
from yolotrt_core.inference.engine_file import spec_path
from yolotrt_core.plugin.options import ON_OFF, option_fields, refuse_unknown
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.tuning.sensitivity import SensitivityOptions
from yolotrt_core.types import PRECISIONS, Json, ShapeRange

SETTINGS = (
    Flag(
        "weights", "Model: a checkpoint, an ONNX file, a SavedModel folder, or a known name (default: embedded model)"
    ),
    Flag(
        "precision",
        f"{'|'.join(PRECISIONS)}|auto: the fastest that runs here and passes the gate, of all builders (default fp16, "
        "or what an ONNX holds already)",
    ),
    Flag("builder", "Builder plugin (default: tensorrt where its library is installed, else onnxruntime)"),
    Flag("exporter", "Exporter plugin (default: the one that recognises the model)"),
    Flag("calibrator", "Calibrator plugin, for int8 and fp8 (default: percentile for int8, minmax for fp8)"),
    Flag("calib_data", "Images to calibrate on: a folder, or a data set YAML, whose `train` part is used"),
    Flag("calib_images", "How many calibration images are used at most (default 128)"),
    Flag("calib_seed", "Which calibration images are used if there are more (default 0)"),
    Flag("imgsz", "Network input in pixels: 640, or height,width as 480,640 (default: the model's own, else 640)"),
    Flag("batch", "Images per inference (default 1)"),
    Flag("dynamic", "on|off: let batch, height and width vary within the profiles (default off)"),
    Flag(
        "profile",
        "Shapes of a dynamic engine, MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH; repeatable, turns --dynamic on "
        "(default: batch 1 to 8, half to full size)",
        repeatable=True,
    ),
    Flag("eval_data", "Images to judge the engine on before it is handed out: a folder, data set YAML or COCO JSON"),
    Flag(
        "max_drop",
        "Largest loss of mAP50-95 against fp32 on labelled --eval-data (default 0.005); if it is given, int8 and fp8 "
        "leave the fewest layers in fp16 that hold it",
    ),
    Flag("recipe", "TOML file with a table per stage, and [build] for these flags; a flag wins over it"),
    Flag(
        "store", "Artifact store folder (default: YOLOTRT_STORE, else artifacts/ of the clone, else the user's cache)"
    ),
    Flag("offline", "Never use the network", switch=True),
)
# Of the commands that run what they build.
RUN_SETTINGS = tuple(
    replace(f, help="Builder plugin (default: the first whose engines run here: tensorrt with a GPU, else onnxruntime)")
    if f.name == "builder"
    else f
    for f in SETTINGS
)
_ENGINES = (".engine", ".plan", ".trt")  # endings that are no model's
_MODELS = (".pt", ".pth", ".onnx", ".pb", ".tflite", ".keras", ".h5")
_OWN = (
    Flag("out", "Folder for the engine and its spec (default ./engines/NAME-PRECISION/)"),
    Flag("force", "Run every stage again", switch=True),
    Flag("json", "Print one JSON document, see yolotrt_core/schemas/build.json", switch=True),
)
# Options of what the core itself does in a build, by recipe table.
_CORE_OPTIONS = {"parity": ParityOptions, "gate": GateOptions, "sensitivity": SensitivityOptions}
PARITY_FLAGS = tuple(
    Flag(f"{prefix}_{f.name}", option_help(f))
    for prefix, options in _CORE_OPTIONS.items()
    for f in option_fields(options, prefix)
)
# Settings that are taken as they stand; what reads the others refuses what it cannot read.
_TEXTS = frozenset({"weights", "precision", "builder", "exporter", "calibrator", "calib_data", "eval_data"})
# What still has a meaning beside an engine file.
_WITH_ENGINE = frozenset({"recipe", "store", "offline", "calib_data", "eval_data"})
RESERVED = tuple("--" + f.name.replace("_", "-") for f in (*SETTINGS, *_OWN, *PARITY_FLAGS))
_MOST = 999_999_999  # of nine digits, in any whole number


def task(stages: Registry) -> Any:
    """Make the `build` task."""
    summary = (
        "Build an engine from a YOLOv5 model; what is in the store is not made again.\n\n"
        "Example: build --weights yolov5n.pt --precision fp16"
    )
    flags = [*SETTINGS, *_OWN, *PARITY_FLAGS, *stage_flags(stages, KINDS)]

    def body(given: Given) -> None:
        settings = build_settings(stages, given)
        out = path_from_text(given["out"])
        engine = build_engine(
            settings, store=open_store(path_from_text(given["store"])), stages=stages, out=out, force=given["force"]
        )
        print(json.dumps(document(engine), indent=2) if given["json"] else engine.path)

    return make_task("build", summary, flags, body)


def build_settings(stages: Registry, given: Given) -> BuildSettings:
    """Merge flags and recipe into settings: a flag wins over the recipe.

    Raises:
        UsageError: a value that cannot be read, an unknown recipe table or key.
    """
    recipe = read_recipe(user_path(given["recipe"]), stages) if given["recipe"] else {}
    table = recipe.get("build", {})
    names = [f.name.replace("_", "-") for f in SETTINGS if f.name not in ("recipe", "store")]
    refuse_unknown({k.replace("_", "-"): v for k, v in table.items()}, names, "in table `[build]` of the recipe")
    merged = {k.replace("-", "_"): v for k, v in table.items()}
    for name in _TEXTS & merged.keys():
        if not isinstance(merged[name], str):
            raise UsageError(f"`build.{name}` in the recipe expects a text, found `{merged[name]}`")
    merged |= {f.name: given[f.name] for f in SETTINGS if given.get(f.name) not in (None, False, [])}
    _refuse_engine(merged.get("weights"), can_run="engine" in given)
    flags = given_stage_flags(stages, given)
    for flag in PARITY_FLAGS:
        if given.get(flag.name) is not None:
            prefix, _, name = flag.name.partition("_")
            flags.setdefault(prefix, {})[name] = given[flag.name]
    given_profiles = merged.get("profile", [])
    profiles = tuple(
        profile_from_text(str(p)) for p in (given_profiles if isinstance(given_profiles, list) else [given_profiles])
    )
    dynamic = switch("--dynamic", merged.get("dynamic", "on" if profiles else "off"))
    if profiles and not dynamic:
        raise UsageError("`--profile` needs a dynamic engine, but `--dynamic off` was given")
    imgsz = size_from_text(merged["imgsz"]) if "imgsz" in merged else None
    if profiles:
        named = {name for name in ("batch", "imgsz") if given.get(name) is not None}
        if not given.get("profile"):  # in the recipe, as any other of its keys
            named |= {name for name in ("batch", "imgsz") if name in merged}
        _refuse_two_shapes(profiles[0], {name: merged[name] for name in sorted(named)})
    return BuildSettings(
        weights=merged.get("weights"),
        precision=merged.get("precision"),
        imgsz=imgsz,
        batch=whole_number("--batch", merged.get("batch", 1)),
        dynamic=dynamic,
        profiles=profiles,
        builder=merged.get("builder"),
        exporter=merged.get("exporter"),
        calibrator=merged.get("calibrator"),
        calib_data=merged.get("calib_data"),
        calib_images=whole_number("--calib-images", merged.get("calib_images", DEFAULT_IMAGES)),
        calib_seed=whole_number("--calib-seed", merged.get("calib_seed", 0), least=0),
        eval_data=merged.get("eval_data"),
        max_drop=share("--max-drop", merged["max_drop"]) if "max_drop" in merged else None,
        offline=switch("--offline", merged.get("offline", False)),
        flags=flags,
        recipe=recipe,
    )


def meant_flag(word: str) -> str | None:
    """Return the flag for a file that is a model or an engine by its ending; None for all else."""
    return next(
        (f for f, ends in (("--engine", _ENGINES), ("--weights", _MODELS)) if word.lower().endswith(ends)), None
    )


def _refuse_engine(weights: str | None, *, can_run: bool) -> None:
    """Refuse an engine in the place of the model it is made of."""
    if weights is not None and meant_flag(weights) == "--engine" and not user_path(weights).is_dir():
        raise UsageError(
            f"`--weights` expects a model, and `{weights}` is an engine by its ending",
            hint=f"pass `--engine {weights}`" if can_run else "pass the model that it was built from",
        )


def _refuse_two_shapes(profile: ShapeRange, named: Mapping[str, Any]) -> None:
    """Refuse a batch or size beside a profile that says another: the profile would win without a word."""
    for name, value in named.items():
        said = profile.opt[:1] if name == "batch" else profile.opt[1:]
        found = (whole_number("--batch", value),) if name == "batch" else size_from_text(value)
        if said != found:
            shown = ",".join(map(str, said))
            raise UsageError(
                f"`--{name} {value}` is not the optimum of the first `--profile`, which says {shown}",
                hint=f"leave out `--{name}`: a profile says all of batch, height and width",
            )


def refuse_build_flags(given: Given) -> None:
    """Refuse flags that say how to build where an engine file was given: they would change nothing.

    Raises:
        UsageError: names the flag.
    """
    if not given.get("engine"):
        return
    for flag in SETTINGS:
        if flag.name not in _WITH_ENGINE and given.get(flag.name) not in (None, False, []):
            name = "--" + flag.name.replace("_", "-")
            raise UsageError(
                f"`{name}` says how to build an engine, and `--engine` names one that is built",
                hint=f"drop `{name}`, or pass `--weights` instead of `--engine`",
            )


def read_recipe(path: Path, stages: Registry) -> Mapping[str, Mapping[str, Any]]:
    """Read a recipe: a TOML file with a table per stage, `[build]` and `[detect]`.

    Raises:
        UsageError: no such file, not TOML, or a table that no stage answers to.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
        repr(recipe)  # fails for a hexadecimal number of thousands of digits, which no error could show
    except OSError as err:
        raise UsageError(f"cannot read the recipe `{path}`: {(err.strerror or str(err)).lower()}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise UsageError(f"the recipe `{path}` is not TOML: {err}") from err
    except ValueError as err:  # Python neither reads nor shows a number of thousands of digits
        raise UsageError(f"the recipe `{path}` has a number of too many digits") from err
    except RecursionError as err:
        raise UsageError(f"the recipe `{path}` is nested too deeply") from err
    names = {name for named in stages.stages.values() for name in named}
    known = ["build", "detect", *_CORE_OPTIONS, *sorted(names)]
    for name in recipe:
        if name not in known:
            hint = "; ".join(filter(None, (nearest(name, known), stages.broken_words(name))))
            raise UsageError(f"unknown name `{name}` in the recipe `{path}`", hint=hint)
    for name, table in recipe.items():
        if not isinstance(table, dict):
            raise UsageError(f"`{name}` in the recipe `{path}` is not a table", hint=f"write [{name}] above its keys")
    return recipe


def document(engine: Engine) -> Json:
    """Return what `build --json` prints; its form is in yolotrt_core/schemas/build.json."""
    return {
        "schema": 1,
        "engine": str(engine.path),
        "spec": str(spec_path(engine.path)),
        "key": engine.key,
        "from_cache": engine.from_cache,
        "builder": engine.spec.builder,
        "precision": engine.spec.precision,
        "tools": to_json(engine.spec.tools),
        "gate": to_json({"key": engine.verdict.key, **engine.verdict.facts}) if engine.verdict else None,
        "mixed": to_json(engine.trade),
        "auto": to_json({f: getattr(engine.pick, f) for f in ("text", "options")}) if engine.pick else None,
        "steps": [
            {
                "step": s.step.label,
                "kind": s.step.kind,
                "plugin": s.step.identity.name,
                "key": s.record.key,
                "from_cache": s.from_cache,
                "seconds": s.record.seconds,
                "facts": to_json(s.record.facts),
            }
            for s in engine.steps
        ],
    }


def size_from_text(text: Any) -> tuple[int, int]:
    """Read `640` or `480,640` (height, width); a recipe may give a number or a list."""
    if isinstance(text, list):
        text = ",".join(map(str, text))
    sides = re.fullmatch(r"(\d{1,6})(?:,(\d{1,6}))?", str(text).replace(" ", ""))
    if sides is None:
        raise UsageError(
            f"`--imgsz` expects a side or height,width in pixels, as 640 or 480,640, found `{text}`",
            hint=f"each from {STRIDE} to {MOST_PIXELS}, a multiple of {STRIDE}",
        )
    return int(sides[1]), int(sides[2] or sides[1])


def profile_from_text(text: str) -> ShapeRange:
    """Read `1x320x320:4x640x640:8x640x640`."""
    shape = r"(\d{1,6})x(\d{1,6})x(\d{1,6})"
    found = re.fullmatch(f"{shape}:{shape}:{shape}", text)
    if found is None:
        raise UsageError(
            f"`--profile` expects MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH, found `{text}`",
            hint="for example 1x320x320:4x640x640:8x640x640",
        )
    n = [int(g) for g in found.groups()]
    return ShapeRange((n[0], n[1], n[2]), (n[3], n[4], n[5]), (n[6], n[7], n[8]))


def whole_number(flag: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """Read a whole number from `least` to `most`."""
    is_number = not isinstance(value, bool) and re.fullmatch(r"\d+", str(value))
    is_over = is_number and (len(str(value)) > len(str(_MOST)) or int(value) > most)
    if not is_number or is_over or int(value) < least:
        limit = f" and at most {most}" if is_over else ""
        raise UsageError(f"`{flag}` expects a whole number of at least {least}{limit}, found `{value}`")
    return int(value)


def share(flag: str, value: Any) -> float:
    """Read a number from 0 to 1."""
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number <= 1:
        raise UsageError(f"`{flag}` expects a number from 0 to 1, found `{value}`")
    return number


def switch(flag: str, value: Any) -> bool:
    """Read on or off."""
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in ON_OFF:
        raise UsageError(f"`{flag}` expects on or off, found `{value}`", hint=nearest(word, ["on", "off"]))
    return ON_OFF[word]


def path_from_text(text: str | None) -> Path | None:
    return user_path(text) if text else None
