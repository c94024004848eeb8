"""Ctrl-C while native code runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from yolotrt_core.interrupt import interruptible


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
        "from yolotrt_core.interrupt import interruptible\n"
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
