"""Signals that stop a run, a terminal that is closed, and a closed pipe."""

import os
import signal
import sys

import pytest

from training.engine.errors import RunStopped
from training.engine.interruption import STOP_SIGNALS, StopSignals, explaining_full_disk, leave_lost_terminal


unless_windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")


@pytest.fixture
def handler():
    """The handler of SIGHUP, which the test runner may ignore."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@unless_windows
def test_a_hangup_is_recorded_like_a_termination(handler):
    assert signal.SIGHUP in STOP_SIGNALS
    with pytest.raises(RuntimeError, match="leave the context"):
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signum == signal.SIGHUP
            raise RuntimeError("leave the context without the signal")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@unless_windows
def test_nohup_still_keeps_a_run_from_stopping(handler):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signum == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@unless_windows
def test_output_to_a_closed_terminal_goes_nowhere(tmp_path):
    """After a hangup each write fails, so that the progress bar would end the run before its checkpoint."""
    master, terminal = os.openpty()
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    try:
        leave_lost_terminal([terminal, file, 10**6])
        assert os.isatty(terminal)
        os.close(master)
        with pytest.raises(OSError):
            os.write(terminal, b"5 steps")
        leave_lost_terminal([terminal, file])
        assert os.write(terminal, b"5 steps") == 7 and os.write(file, b"line") == 4
    finally:
        os.close(terminal)
        os.close(file)
    assert (tmp_path / "log").read_text() == "line"


def test_a_full_disk_is_an_error_that_commands_show_in_one_line(tmp_path):
    with pytest.raises(RunStopped, match="because the disk is full"):
        with explaining_full_disk(tmp_path):
            raise OSError(28, "No space left on device")
