"""What invoke would misread: each gives help or a message, never a wrong run."""

from __future__ import annotations

import pytest

from .conftest import Run


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_detect_help_is_help(run: Run, flag: str) -> None:
    ran = run("detect", flag)
    assert ran.code == 0
    assert "Detect objects in images and videos" in ran.out
    assert "Confidence threshold (default: 0.25)" in " ".join(ran.out.split())
    assert "--multi-label" not in ran.out  # not among the common options
    assert ran.err == ""


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_task_in_a_group(run: Run, flag: str) -> None:
    ran = run("artifacts.show", flag)
    assert ran.code == 0
    assert "Show one artifact and its lineage" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize("arguments", [("--help", "detect"), ("build", "--help"), ("build", "-h")])
def test_other_ways_to_ask_for_help(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.code == 0
    assert "--precision" in ran.out
    # The texts, not only the names.
    words = "Image, video, folder" if "detect" in arguments else "a SavedModel folder, or a known name"
    assert words in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("detect", "--cnf", "0.3", "a.jpg"), "did you mean `--conf`"),
        (("detect", "--show-tming", "a.jpg"), "did you mean `--show-timing`"),
        (("detect", "--conf=0.3", "--clases=1", "a.jpg"), "did you mean `--classes`"),
        (("artifacts.show", "--jsn", "abc"), "did you mean `--json`"),
        (("build", "--precison", "fp16"), "did you mean `--precision`"),
        (("build", "--zzzzzz"), "`build --help-all` lists them"),
    ],
)
def test_a_mistyped_flag_never_becomes_the_path(run: Run, arguments: tuple[str, ...], meant: str) -> None:
    ran = run(*arguments)
    assert ran.code == 1
    assert "has no flag" in ran.err
    assert meant in ran.err
    assert ran.out == ""


def test_an_unquoted_glob_says_to_quote_it(run: Run) -> None:
    ran = run("detect", "--conf", "0.5", "a.jpg", "b.jpg", "c.jpg")
    assert ran.code == 1
    assert "takes one PATH, found `a.jpg` and `b.jpg`" in ran.err
    assert "quote a pattern" in ran.err


def test_a_second_task_is_still_a_task(run: Run) -> None:
    ran = run("detect", "none.jpg", "plugins")
    assert "no such file or folder: `none.jpg`" in ran.err
    assert "takes one PATH" not in ran.err


@pytest.mark.parametrize("arguments", [("build", "--precision"), ("buld",), ("detect",)])
def test_what_invoke_rejects_exits_one(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert ran.err.strip()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("build --precision fp16 --precision=fp32", "`--precision` was given twice: `fp16` and `fp32`"),
        ("build --weights", "`--weights` needs a value"),
        ("build --imgsz 480 640 --precision fp16", "`--imgsz` takes one value, found `480` and `640`"),
        ("detect --imgsz 480 640 a.jpg", "one argument: `--imgsz 480,640`"),
        ("detect --imgsz=480 640 a.jpg", "one argument: `--imgsz 480,640`"),
        ("build --weights --precision fp16", "`--weights` needs a value"),
        ("detct sample", "unknown task `detct`"),
        ("--echo detct sample", "did you mean `detect`?"),
        ("artifact.list", "did you mean `artifacts.list`"),
    ],
)
def test_what_invoke_would_not_explain(run: Run, line: str, words: str) -> None:
    ran = run(*line.split())
    assert ran.code == 1
    assert words in ran.err
    assert ran.err.startswith("error: ")
    assert ran.out == ""


def test_what_may_be_given_twice(run: Run) -> None:
    shape = ("--profile", "1x320x320:1x320x320:1x320x320")
    ran = run("artifacts.explain", "--json", "--json", "--builder", "onnxruntime", *shape, *shape)
    assert ran.code == 0, ran.err
    assert run("--list-depth", "1", "--list").code == 0


@pytest.mark.parametrize(
    ("line", "words", "hint"),
    [
        ("build model.pt", "`build` accepts no positional arguments, found `model.pt`", "`--weights model.pt`"),
        ("bench --repeats 5 a.engine", "found `a.engine`", "pass `--engine a.engine`"),
        ("build a.engine", "found `a.engine`", "`build --help-all` lists the flags"),
        ("evaluate coco.yaml", "found `coco.yaml`", "pass `--data coco.yaml`"),
        ("plugins doctr", "found `doctr`", "did you mean `doctor`?"),
        ("plugins x.y/z", "found `x.y/z`", "`plugins --help-all` lists the flags"),
        ("detect --source 0", "`detect` has no flag `--source`", "`detect camera:0`"),
        ("detect --source=a.jpg", "`detect` has no flag `--source`", "`detect a.jpg`"),
        ("detect --conf 0.3", "`detect` needs a PATH, but none was given", "RTSP URL, or `sample`"),
        ("artifacts.show", "`artifacts.show` needs a KEY, but none was given", "KEY: First digits of a key"),
    ],
)
def test_a_word_in_the_wrong_place(run: Run, line: str, words: str, hint: str) -> None:
    ran = run(*line.split())
    assert ran.code == 1
    error, _, told = ran.err.partition("\nhint: ")
    assert error.startswith("error: ")
    assert words in error
    assert hint in told
    assert ran.out == ""


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("detect --weights x.engine sample", "pass `--engine x.engine`"),
        ("bench --weights x.PLAN", "pass `--engine x.PLAN`"),
        ("build --weights x.engine", "pass the model it was built from"),
    ],
)
def test_an_engine_in_the_place_of_a_model(run: Run, line: str, hint: str) -> None:
    ran = run(*line.split())
    assert ran.code == 2
    assert "`--weights` expects a model" in ran.err
    assert hint in ran.err


def test_a_bare_number_is_no_camera(run: Run) -> None:
    ran = run("detect", "0")
    assert ran.code == 2
    assert ran.err == "error: there is no file or folder `0`\nhint: for this camera, pass `camera:0`\n"


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["x.pt", "sample"], 1, "pass `--weights x.pt`"),
        (["sample", "x.engine"], 1, "pass `--engine x.engine`"),
        (["a.jpg", "b.jpg"], 1, "quote a pattern"),
        (["x.onnx"], 2, "pass `--weights x.onnx` and a PATH, as in `detect --weights x.onnx sample`"),
        (["x.plan"], 2, "pass `--engine x.plan` and a PATH"),
    ],
)
def test_a_model_among_the_images(run: Run, words: list[str], code: int, hint: str) -> None:
    ran = run("detect", *words)
    assert ran.code == code
    assert f"hint: {hint}" in ran.err


def test_all_options_are_shown_with_their_types_under_the_titles_of_their_stages(run: Run) -> None:
    shown = run("build", "--help-all").out
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[:5] == ["Build:", "Calibration:", "Accuracy gate:", "Parity check:", "Layer sensitivity:"]
    assert titles[-1].lower() == "tensorrt builder:"
    for usage in (
        "--profile MIN:OPT:MAX", "--batch INT", "--max-drop FLOAT", "--dynamic on|off", "--out DIR",
        "--calib-data DIR|FILE", "--tensorrt-workspace INT", "--offline",
    ):  # fmt: skip
        assert f"  {usage} " in shown
    assert "STRING" not in shown


@pytest.mark.parametrize(
    "task", ["build", "detect", "evaluate", "bench", "sensitivity", "artifacts.explain", "artifacts.export"]
)
def test_help_fits_a_screen_and_names_the_other_groups(run: Run, task: str) -> None:
    lines = run(task, "--help").out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    end = " ".join(lines[lines.index("", lines.index("Common options:")) :])
    assert f"`{task} --help-all` shows all options: " in end
    assert "Accuracy gate, Parity check" in end


@pytest.mark.parametrize("arguments", [("detect", "--help-all"), ("detect", "sample", "--help-all")])
def test_help_of_all_options_needs_no_other_argument(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "--multi-label on|off" in ran.out


@pytest.mark.parametrize("task", ["detect", "evaluate", "bench"])
def test_the_builder_of_what_runs_is_the_first_that_runs(run: Run, task: str) -> None:
    shown = " ".join(run(task, "--help").out.split())
    assert "Builder plugin (default: the first that runs" in shown
