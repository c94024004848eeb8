"""Progress on a terminal, and silence elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from command_line import descriptors_taken_over
from yolotrt_core.console.progress import progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("outer", total=2) as bar, progress("inner"):
        bar.update(completed=1)
    told = capsys.readouterr()
    assert told.out == told.err == ""


def test_blocks_nest_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with descriptors_taken_over():
        with progress("outer work", total=2) as outer:
            with progress("inner work") as inner:
                inner.update(text="inner further")
                outer.update(completed=1)
            print("a result")
        with progress("another"):
            pass
    shown = terminal.getvalue()
    # The display is redrawn a few times a second and at its end, when only the outer line is left.
    assert "outer work" in shown
    assert "another" in shown
    assert capsys.readouterr().out == "a result\n"


def test_an_error_inside_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with descriptors_taken_over():
        with pytest.raises(ValueError, match="mine"), progress("outer"), progress("inner"):
            raise ValueError("mine")
        with progress("again"):
            pass


def test_in_library_use_a_terminal_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("work", total=2) as bar:
        bar.update(completed=1)
        assert sys.stderr is terminal
    assert terminal.getvalue() == ""
