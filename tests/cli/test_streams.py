"""Standard streams that are closed, full or of a small encoding; names of any script; other people's settings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from yolotrt_core.export.model_source import default_model_path, sample_path

from .conftest import Run, both_commands, start

_BUILD = ("build", "--builder", "onnxruntime")


@pytest.mark.parametrize(
    ("run", "name"), [(None, "ö"), ("invoke", "модель"), ("yolotrt", "車 2"), (None, "مدل‌من")], indirect=["run"]
)
def test_a_model_may_have_any_letters_in_its_name(run: Run, warm: Path, tmp_path: Path, name: str) -> None:
    if name != "ö":  # the name enters no cache key, so that nothing need be built
        shutil.copytree(warm / "store", tmp_path / "store")
    weights = tmp_path / f"{name}.pt"
    shutil.copy(default_model_path(), weights)
    chosen = ("--weights", str(weights), "--builder", "onnxruntime")
    ran = run("build", *chosen)
    assert ran.code == 0, ran.err
    assert ran.out == f"engines/{name}-fp16/{name}-fp16.onnx\n"
    if name != "ö":
        return
    listed = json.loads(run("artifacts.list", "--json").out)["artifacts"]
    engine = next(a for a in listed if "ö-fp16-onnxruntime" in a["names"])
    assert "ö-fp16-onnxruntime" in run("artifacts.list").out
    assert run("artifacts.show", engine["key"]).code == 0
    ran = run("artifacts.export", *chosen, "--kind", "engine", "--out", "taken")
    assert ran.out == "taken/ö-fp16.onnx\n"
    kept = json.loads(run("artifacts.gc", "--keep-days", "0", "--json").out)
    assert engine["key"] not in [r["key"] for r in kept["records"]]
    assert run("artifacts.verify").code == 0
    assert run("detect", *chosen, "sample").code == 0


@both_commands
@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\udcff"])
def test_a_name_that_cannot_be_printed_is_refused_before_the_build(run: Run, tmp_path: Path, name: str) -> None:
    weights = tmp_path / f"{name}.pt"
    shutil.copy(default_model_path(), weights)
    ran = run(*_BUILD, "--weights", str(weights))
    assert ran.code == 2
    assert "invalid model name" in ran.err.splitlines()[0]
    assert "\x1b" not in ran.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("run", "encoding"), [("invoke", "ascii"), ("yolotrt", "latin-1")], indirect=["run"])
def test_an_encoding_without_the_characters(run: Run, warm: Path, tmp_path: Path, encoding: str) -> None:
    how = {"store": tmp_path / "store", "variables": {"PYTHONIOENCODING": encoding}}
    shutil.copytree(warm / "store", tmp_path / "store")
    weights = tmp_path / "車.pt"
    shutil.copy(default_model_path(), weights)
    ran = run(*_BUILD, "--weights", str(weights), **how)
    assert ran.code == 0, ran.err
    assert ran.out == "engines/?-fp16/?-fp16.onnx\n"
    assert "?-fp16-onnxruntime" in run("artifacts.list", **how).out


@pytest.mark.parametrize(("encoding", "bar"), [("ascii", "########"), ("utf-8", "████████")])
def test_the_bars_of_sensitivity(warm: Path, tmp_path: Path, encoding: str, bar: str) -> None:
    images = tmp_path / "pictures"
    images.mkdir()
    shutil.copy(sample_path(), images)
    arguments = ("sensitivity", "--builder", "onnxruntime", "--calib-data", str(images), "--sensitivity-images", "1")
    variables = {"PYTHONIOENCODING": encoding}
    for command in ("invoke", "yolotrt"):
        ran = start(command, *arguments, cwd=tmp_path, store=warm / "store", variables=variables)
        assert ran.code == 0, ran.err
        assert bar in ran.out
        assert "Traceback" not in ran.err


@both_commands
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("doctor",), ("plugins", "--json"), _BUILD])
def test_a_full_standard_output(run: Run, warm: Path, arguments: tuple[str, ...], unbuffered: str) -> None:
    how = {"store": warm / "store", "redirect": ">/dev/full", "variables": {"PYTHONUNBUFFERED": unbuffered}}
    ran = run(*arguments, **how)
    assert ran.code == 5
    assert "error: cannot write to standard output: no space left on device" in ran.err.splitlines()
    assert "Traceback" not in ran.err
    assert "Exception ignored" not in ran.err


@both_commands
@pytest.mark.parametrize("arguments", [("--list",), ("build", "--help")])
def test_a_full_standard_output_outside_of_tasks(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments, redirect=">/dev/full")
    assert ran.code == 5
    assert ran.err.startswith("error: cannot write to standard output: no space left on device")
    assert "Traceback" not in ran.err
    assert "Exception ignored" not in ran.err


# Buffered, all of it meets the closed pipe at the very end; unbuffered, the second line does.
@both_commands
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--list",), ("build", "--help"), ("plugins", "--options"), ("artifacts.list",)])
def test_a_reader_that_goes_away(run: Run, warm: Path, arguments: tuple[str, ...], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = run(*arguments, store=warm / "store", variables={"PYTHONUNBUFFERED": unbuffered}, stdout=writer)
    os.close(writer)
    assert ran.code == 141
    assert ran.err == ""


@pytest.mark.parametrize(
    ("run", "closed"),
    [("invoke", ">&-"), ("yolotrt", "2>&-"), ("invoke", ">&- 2>&- <&-"), ("yolotrt", ">&- 2>&- <&-")],
    indirect=["run"],
)
def test_closed_streams(run: Run, warm: Path, tmp_path: Path, closed: str) -> None:
    ran = run(*_BUILD, "--force", "--out", "made", store=tmp_path / "store", redirect=closed)
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert ran.out == ("made/parts-fp16.onnx\n" if closed == "2>&-" else "")
    engine = tmp_path / "here" / "made" / "parts-fp16.onnx"
    # What native libraries print to the closed number's successor must not end up in a file.
    assert engine.read_bytes() == next((warm / "engine").glob("*.onnx")).read_bytes()
    ran = run("build", "--precision", "fp12", redirect=closed)
    assert ran.code == 2


@pytest.mark.parametrize("spoiled", ["broken", "unreadable", "a folder"])
def test_settings_for_invoke_are_not_ours(tmp_path: Path, spoiled: str) -> None:
    settings = tmp_path / ".invoke.yaml"
    if spoiled == "a folder":
        settings.mkdir()
    else:
        settings.write_text("tasks: [" if spoiled == "broken" else "tasks: {dedupe: 1}\n")
        settings.chmod(0 if spoiled == "unreadable" else 0o644)
    variables = {"HOME": str(tmp_path)}
    ran = start("yolotrt", "plugins", cwd=tmp_path, store=tmp_path / "store", variables=variables)
    assert ran.code == 0, ran.err
    assert "onnxruntime" in ran.out
