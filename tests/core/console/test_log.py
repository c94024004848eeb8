"""Messages: once, on standard error, whatever a plugin has set up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import logging, sys
from yolotrt_core.console.log import configure, stage_log
{plugin}
configure()
logging.getLogger("yolotrt_core.pipeline.executor").warning("ours")
logging.getLogger("mine").error("theirs")
logging.getLogger("mine").warning("quiet")
"""


@pytest.mark.parametrize(
    "plugin",
    ["", "logging.basicConfig()", "logging.warning('at import')", "logging.basicConfig(stream=sys.stdout, level=10)"],
)
def test_a_message_is_shown_once_whatever_a_plugin_set_up(plugin: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(plugin=plugin)], capture_output=True, text=True, timeout=60, check=True
    )
    shown = done.stdout + done.stderr
    assert shown.count("ours") == 1
    assert shown.count("theirs") == 1
    assert "warning: ours" in done.stderr


@pytest.mark.parametrize("option", [(), ("-W", "default")])
def test_warnings_of_libraries_are_shown_on_request(option: tuple[str, ...]) -> None:
    program = f"{_PROGRAM.format(plugin='')}\nimport warnings; warnings.warn('of a library', FutureWarning)"
    done = subprocess.run(
        [sys.executable, *option, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ("FutureWarning: of a library" in done.stderr) == bool(option)
    assert "warning: ours" in done.stderr


def test_as_a_library_messages_go_where_the_program_sends_them() -> None:
    program = "import logging; logging.basicConfig(format='mine %(message)s'); import yolotrt_core.console.log\n"
    program += "logging.getLogger('yolotrt_core.pipeline.executor').warning('ours')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "mine ours\n"


_STAGE = """
import logging, os, sys, warnings
from pathlib import Path
from yolotrt_core.cli import stdio
from yolotrt_core.console.log import configure, only_in_stage_log, stage_log
from yolotrt_core.console.output import native_output_to
if sys.argv[2] == "command":
    stdio.prepare()
    configure()
with stdio.results_apart():
    with stage_log(Path(sys.argv[1])):
        print("first"); os.write(1, b"second\\n")
        with native_output_to(1, 2):
            os.write(2, b"third\\n")
        os.write(1, b"fourth\\n")
        logging.getLogger("yolotrt_core.of_a_module_imported_later").debug("fifth")
        with only_in_stage_log("mine"):
            logging.getLogger("mine.own").error("sixth")
        warnings.warn("seventh")
        stdio.show("shown")
    print("aside"); os.write(1, b"aside too\\n")
    stdio.show("result")
"""


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_a_stage_s_log_takes_what_is_printed_inside_it(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    done = _run(_STAGE, str(log), "command")
    assert done.stdout == "shown\nresult\n"
    assert sorted(done.stderr.splitlines()) == ["aside", "aside too"]
    written = log.read_text()
    for text in ("first", "second", "third", "fourth", "fifth", "sixth", "seventh"):
        assert text in written


def test_a_library_leaves_what_is_printed_and_warned_where_it_goes(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    done = _run(_STAGE, str(log), "library")
    assert {"second", "fourth", "shown", "aside too", "result"} == set(done.stdout.splitlines())
    for text in ("third", "sixth", "seventh"):
        assert text in done.stderr
    assert not log.exists()  # nothing of ours from warnings on


def test_closed_descriptors_are_no_reason_to_fail() -> None:
    program = (
        "import os, sys; from yolotrt_core.cli import stdio\n"
        "os.close(1); sys.stdout = sys.__stdout__ = None; stdio.prepare()\n"
        "with stdio.results_apart(): print('x')"
    )
    done = _run(program)
    assert "Traceback" not in done.stderr
    assert "x" in done.stderr
