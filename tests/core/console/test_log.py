"""Messages: once, on standard error, whatever a plugin has set up."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import logging, sys
from yolotrt_core.console.log import configure, stage_log, stdout_aside
{plugin}
configure()
logging.getLogger("yolotrt_core.build.executor").warning("ours")
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


def test_as_a_library_messages_go_where_the_program_sends_them() -> None:
    program = "import logging; logging.basicConfig(format='mine %(message)s'); import yolotrt_core.console.log\n"
    program += "logging.getLogger('yolotrt_core.build.executor').warning('ours')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "mine ours\n"


def test_a_stage_s_log_takes_what_a_hook_prints_inside_it(tmp_path: object) -> None:
    program = """
import os, sys
from pathlib import Path
from yolotrt_core.console.log import stage_log, stdout_aside
with stage_log(Path(sys.argv[1])):
    print("first"); os.write(1, b"second\\n")
    with stdout_aside():
        print("third"); os.write(1, b"fourth\\n")
    print("fifth")
with stdout_aside():
    print("aside")
print("result")
"""
    log = f"{tmp_path}/stage.log"
    done = subprocess.run([sys.executable, "-c", program, log], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "result\n"
    assert done.stderr == "aside\n"
    with open(log, encoding="utf-8") as written:  # noqa: PTH123 - one line
        assert sorted(written.read().split()) == ["fifth", "first", "fourth", "second", "third"]


def test_closed_descriptors_are_no_reason_to_fail() -> None:
    program = (
        "import os, sys; from yolotrt_core.console.log import stdout_aside\n"
        "os.close(1)\nwith stdout_aside(): print('x')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "x" in done.stderr
