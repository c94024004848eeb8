"""Ctrl-C while native code runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from yolotrt_core.console.signals import interruptible


def test_the_flag_is_set_and_the_interrupt_comes_after_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_the_cancelled_work_gives_way_to_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible() as interrupt:
        interrupt.request()
        raise RuntimeError("build returned None")


def test_without_an_interrupt_nothing_changes() -> None:
    with interruptible() as interrupt:
        pass
    assert not interrupt.requested
    with pytest.raises(RuntimeError, match="its own"), interruptible():
        raise RuntimeError("its own")


def test_other_threads_may_use_it() -> None:
    seen: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_second_interrupt_acts_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from yolotrt_core.console.signals import interruptible\n"
        # A test run in the background inherits an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with interruptible():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('never', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "first\n"
    assert "KeyboardInterrupt" in done.stderr


def _ran(code: str) -> subprocess.CompletedProcess[str]:
    head = (
        "import os, signal\n"
        "from yolotrt_core.console.signals import Terminated, endable, interruptible, terminable\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def kill(number):\n"
        "    os.kill(os.getpid(), number)\n"
    )
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=60)


def test_sigterm_is_raised_where_a_command_runs() -> None:
    done = _ran(
        "try:\n"
        "    with terminable():\n"
        "        kill(signal.SIGTERM)\n"
        "        print('never')\n"
        "except Terminated as err:\n"
        "    print(isinstance(err, KeyboardInterrupt), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
    )
    assert done.stdout == "True True\n", done.stderr


def test_sigterm_is_left_to_a_program_that_handles_it() -> None:
    done = _ran(
        "signal.signal(signal.SIGTERM, lambda *told: print('theirs'))\n"
        "with terminable():\n"
        "    kill(signal.SIGTERM)\n"
        "    print('on')\n"
    )
    assert done.stdout == "theirs\non\n", done.stderr
    done = _ran("with interruptible():\n    kill(signal.SIGTERM)\n    print('never')\n")
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_sigterm_is_collected_within_native_code() -> None:
    done = _ran(
        "try:\n"
        "    with terminable(), interruptible() as interrupt:\n"
        "        kill(signal.SIGTERM)\n"
        "        print(interrupt.requested, interrupt.terminated)\n"
        "except Terminated:\n"
        "    print('raised')\n"
    )
    assert done.stdout == "True True\nraised\n", done.stderr


@pytest.mark.parametrize(("name", "after"), [("SIGINT", "goes on"), ("SIGTERM", "raised")])
def test_work_that_keeps_what_it_has(name: str, after: str) -> None:
    done = _ran(
        "try:\n"
        "    with terminable(), endable() as interrupt:\n"
        f"        kill(signal.{name})\n"
        "        print(interrupt.requested)\n"
        "    print('goes on')\n"
        "except Terminated:\n"
        "    print('raised')\n"
    )
    assert done.stdout == f"True\n{after}\n", done.stderr
    done = _ran(
        "try:\n"
        "    with terminable(), endable():\n"
        f"        kill(signal.{name})\n"
        f"        kill(signal.{name})\n"
        "        print('never')\n"
        "except KeyboardInterrupt:\n"
        "    print('at once')\n"
    )
    assert done.stdout == "at once\n", done.stderr
