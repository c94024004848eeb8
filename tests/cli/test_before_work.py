"""What is wrong in the command line is said before any stage runs, with the exit code of its kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fake_stages import fake_plugin
from yolotrt_core.api import build_engine
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store

from .conftest import Run


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder the command runs in, with some images, and files that are none of what is asked for."""
    folder = tmp_path / "here"
    (folder / "pics").mkdir(parents=True)
    shutil.copy(sample_path(), folder / "pics")
    (folder / "video.mp4").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("evaluate --data pics --against NONSENSE", 2, "`--against` expects an engine file or one of fp32"),
        ("evaluate --data pics --against fp31", 2, "hint: did you mean `fp32`"),
        ("evaluate --data pics --against int8", 2, "`--against int8` needs calibration images"),
        ("evaluate --data nix", 2, "the data set `nix` does not exist"),
        ("bench --against nix.engine", 2, "no such engine file: `nix.engine`"),
        ("build --gate-agreement 2", 2, "`--gate-agreement` expects a number, at least 0 and at most 1, found `2`"),
        ("build --gate-images x", 2, "`--gate-images` expects a whole number"),
        ("build --sensitivity-images 0", 2, "`--sensitivity-images` expects a whole number"),
        ("build --eval-data nix", 2, "the data set `nix` does not exist"),
        ("build --eval-data video.mp4", 2, "`video.mp4` is not a data set"),
        ("build --max-drop 0.1", 2, "`--max-drop` needs labelled images"),
        ("build --precision int8 --calibrator import --import-file nix", 2, "`nix`: no such file or directory"),
        ("build --precision int8 --calibrator import", 2, "calibrator `import` needs a file"),
        (
            "build --precision fp16 --calib-data nix",
            2,
            "hint: expected a folder of images, a list of images, or a data set YAML",
        ),
        ("build --class-map nix", 2, "`--class-map` expects a file, or class names of the data set and the model"),
        ("evaluate --data pics --class-map a=b,c", 2, "the class map has `c`, expected NAME=NAME"),
        ("detect pics --category-ids coco", 2, "`--category-ids coco` needs `--format coco`, found `json`"),
        ("detect pics --label-scores off --format coco", 2, "`--label-scores off` needs `--format yolo`, found `coco`"),
        ("build --out video.mp4", 5, "cannot write to `video.mp4`: `video.mp4` is not a folder"),
        ("build --out video.mp4/deeper", 5, "is not a folder"),
        ("detect pics --out video.mp4", 5, "cannot write to `video.mp4`: `video.mp4` is not a folder"),
        ("artifacts.export --kind onnx --out video.mp4", 5, "`video.mp4` is not a folder"),
        ("build --tensorrt-module tensorrt", 3, "`tensorrt`"),
        ("build --precision int8 --calib-data pics --tensorrt-typing weak --tensorrt-module tensorrt_rtx", 2, "weakly"),
        ("sensitivity", 2, "calibrator `percentile` needs images"),
        ("build --precision FP16", 2, "hint: did you mean `fp16`?"),
        (
            "build --precision zzz",
            2,
            "`--precision` expects `fp32`, `fp16`, `bf16`, `int8`, `fp8` or `auto`, found `zzz`",
        ),
        ("build --imgsz 0", 2, "multiples of 32, found 0; 32 is the minimum"),
        ("build --imgsz 99999", 2, "height and width must be 32 to 8192 pixels, found 99999"),
        ("build --imgsz 99999999", 2, "hint: each from 32 to 8192"),
        ("detect sample --max-det 99999999999", 2, "at least 1, found"),
        ("detect sample --max-det 0", 2, "at least 1, found `0`"),
        ("artifacts.export --out x", 2, "`--kind` is required"),
        ("build --profile 1x320x320:1x320x320:1x320x320 --batch 2", 2, "`--batch 2` differs from the optimum"),
        ("build --profile 1x320x320:1x320x320:1x320x320 --imgsz 640", 2, "the first `--profile`, 320"),
    ],
)
def test_nothing_is_made_first(run: Run, here: Path, tmp_path: Path, line: str, code: int, words: str) -> None:
    before = sorted(here.iterdir())
    ran = run(*line.split())
    assert ran.code == code, ran.err
    assert words in ran.err
    assert all(text.startswith(("error: ", "hint: ")) for text in ran.err.splitlines()), ran.err
    assert ran.out == ""
    assert sorted(here.iterdir()) == before
    assert not (tmp_path / "store").exists()


def test_hints_fit_the_command(run: Run, here: Path) -> None:
    assert "fp16" not in run("sensitivity").err
    assert "labels" not in run("build", "--calib-data", "nix").err


def test_a_profile_and_what_it_says_are_no_conflict(run: Run, here: Path, warm: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("[build]\nimgsz = 640\nbatch = 2\nbuilder = 'onnxruntime'\n")
    shapes = "1x320x320:1x320x320:4x320x320"
    explained = run("artifacts.explain", "--recipe", str(recipe), "--profile", shapes)
    assert explained.code == 0, explained.err  # a flag wins over the recipe
    explained = run("artifacts.explain", "--profile", shapes, "--batch", "1", "--imgsz", "320")
    assert explained.code == 0, explained.err
    recipe.write_text(f"[build]\nimgsz = 640\nprofile = '{shapes}'\n")
    assert "`--imgsz 640` differs from the optimum" in run("artifacts.explain", "--recipe", str(recipe)).err


def test_a_module_to_keep_that_is_not_there(run: Run, here: Path, warm: Path) -> None:
    common = ("build", "--builder", "onnxruntime", "--precision", "int8", "--calib-data", "pics")
    ran = run(*common, "--int8-keep", "model.99", store=warm / "store")
    assert ran.code == 2
    assert "unknown module `model.99`" in ran.err
    assert "only 1 calibration image:" in ran.err


def test_a_half_precision_source_is_nothing_else(run: Run, here: Path, warm: Path) -> None:
    shutil.copy(next((warm / "engine").glob("*.onnx")), here / "half.onnx")
    common = ("build", "--builder", "onnxruntime", "--weights", "half.onnx")
    for asked in ("fp32", "int8"):
        ran = run(*common, "--precision", asked, store=here.parent / "store")
        assert ran.code == 2
        assert f"cannot build {asked}: `half.onnx` is already fp16" in ran.err
    ran = run(*common, store=here.parent / "store")
    assert (ran.code, ran.out) == (0, "engines/half-fp16/half-fp16.onnx\n"), ran.err
    assert "`half.onnx` is already fp16; building fp16" in ran.err
    assert run("artifacts.export", *common[1:], "--kind", "onnx", "--out", "x", store=here.parent / "store").out == (
        "x/half-fp16.onnx\n"
    )


def test_calibration_images_that_cannot_be_read(run: Run, here: Path, warm: Path) -> None:
    for number in range(3):
        (here / "pics" / f"bad{number}.jpg").write_bytes(b"")
    ran = run("build", "--builder", "onnxruntime", "--precision", "int8", "--calib-data", "pics", store=warm / "store")
    assert ran.code == 2
    assert "calibration images cannot be read, over 10%" in ran.err


def test_a_batch_that_memory_does_not_hold(run: Run, here: Path) -> None:
    ran = run("build", "--builder", "onnxruntime", "--batch", "100000000")
    assert ran.code == 4
    assert "out of memory for batch 100000000 at 320x320" in ran.err
    assert "hint: use a smaller `--batch` or `--imgsz`" in ran.err
    assert "plugin bug in" not in ran.err


def test_another_engine_is_not_replaced_without_a_word(run: Run, warm: Path) -> None:
    common = ("build", "--builder", "onnxruntime")
    words = "warning: overwriting an engine of batch 1, 320x320 with one of batch 2, 320x320 in"
    assert "overwriting" not in run(*common, store=warm / "store").err
    assert "overwriting" not in run(*common, store=warm / "store").err
    ran = run(*common, "--batch", "2", store=warm / "store")
    assert ran.code == 0
    assert [line for line in ran.err.splitlines() if line.startswith(words)]
    ran = run(*common, "--batch", "2", "--fp16-decode", "fp16", store=warm / "store")
    assert ran.code == 0
    assert "warning: overwriting an engine of other weights, options or tools in `engines/" in ran.err


def test_flags_that_change_nothing(run: Run, warm: Path, tmp_path: Path) -> None:
    idle = ("--int8-keep", "model.2", "--tensorrt-workspace", "7")
    working = ("--simplify-tool", "off", "--fp32-convolutions", "auto")
    ran = run("build", "--builder", "onnxruntime", *idle, *working, store=warm / "store")
    assert ran.code == 0, ran.err
    assert [line for line in ran.err.splitlines() if "no effect" in line] == [
        "warning: `--int8-keep` has no effect: no stage `int8` runs in this build",
        "warning: `--tensorrt-workspace` has no effect: no stage `tensorrt` runs in this build",
    ]
    recipe = tmp_path / "r.toml"
    recipe.write_text("[int8]\nkeep = 'model.2'\n[tensorrt]\nworkspace = 7\n")
    ran = run("build", "--builder", "onnxruntime", "--recipe", str(recipe), store=warm / "store")
    assert "no effect" not in ran.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1,2", "invalid JSON at line 1, column 5"),
        ("[1, 2]", "object `tensors` is missing"),
        ("[" * 9**6, "invalid JSON"),
    ],
)
def test_a_ranges_file_that_is_none(run: Run, warm: Path, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(content)
    common = ("build", "--builder", "onnxruntime", "--precision", "int8", "--calibrator", "import")
    ran = run(*common, "--import-file", str(file), store=warm / "store")
    assert ran.code == 2
    assert f"`{file}` is not a ranges file: " in ran.err
    assert words in ran.err
    assert "Expecting" not in ran.err
    assert "recursion" not in ran.err


def test_show_by_name_and_what_is_ambiguous(run: Run, warm: Path) -> None:
    store = warm / "store"
    listed = json.loads(run("artifacts.list", "--json", store=store).out)["artifacts"]
    for artifact in listed:
        for name in artifact["names"]:
            shown = json.loads(run("artifacts.show", name, "--json", store=store).out)
            assert shown["record"]["key"] == artifact["key"]


def test_a_prefix_of_several_keys_names_some(run: Run, tmp_path: Path) -> None:
    registry = Registry.of(fake_plugin())
    weights, folder = tmp_path / "model.txt", tmp_path / "store"
    for factor in range(22):  # 4 artifacts each: of 16 first digits one must stand before more than 4 keys
        weights.write_text(f"2 {factor + 1}")
        wanted = BuildSettings(weights=weights, imgsz=(32, 64), precision="fp16")
        build_engine(wanted, store=Store(folder), registry=registry, out=tmp_path / "out")
    keys = [a["key"] for a in json.loads(run("artifacts.list", "--json", store=folder).out)["artifacts"]]
    count, digit = max((sum(key.startswith(digit) for key in keys), digit) for digit in "0123456789abcdef")
    assert count > 4
    ran = run("artifacts.show", digit, store=folder)
    assert ran.code == 2
    assert ran.err.count("`, `") + 1 == 4
    assert f"and {count - 4} more" in ran.err


def test_a_file_that_yolotrt_did_not_make_is_not_replaced_without_a_word(run: Run, here: Path, warm: Path) -> None:
    common = ("--builder", "onnxruntime", "--out", "mine")
    built = run("build", *common, store=warm / "store")
    assert built.code == 0, built.err
    (made,) = (here / "mine").glob("*.onnx")
    made.with_name(made.name + ".json").write_text("my own")
    made.write_text("my own")
    ran = run("build", *common, store=warm / "store")
    assert f"warning: overwriting `mine/{made.name}`, which was not created by yolotrt" in ran.err
    exported = ("artifacts.export", "--kind", "onnx", *common)
    assert "overwriting" not in run(*exported, store=warm / "store").err, "it is the same"
    made.write_text("my own")
    assert f"warning: overwriting `mine/{made.name}`" in run(*exported, store=warm / "store").err


def test_a_folder_with_an_engine_in_it(run: Run, here: Path) -> None:
    (here / "made").mkdir()
    (here / "made" / "x.engine").touch()
    ran = run("detect", "--engine", "made", "pics")
    assert ran.code == 2
    assert "no such engine file: `made`" in ran.err
    assert "hint: it is a folder: pass `made/x.engine`" in ran.err
