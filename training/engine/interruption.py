# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stopping a run cleanly: signals and full disks."""

import errno
import os
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from safetensors import SafetensorError

from training.engine.errors import RunStopped


NAMES = ("SIGTERM", "SIGINT", "SIGHUP")  # Windows has no SIGHUP
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class TrainingInterrupted(SystemExit):
    """Exit of a run after a stop signal and its checkpoint. The exit code is 128 + the signal, as in a shell."""


class StopSignals:
    """Context manager that records the first of `STOP_SIGNALS` in `signum` (0 before) and ignores further ones.

    Under a launcher each process gets two: one with its group, one from the launcher. SIGKILL still ends the process
    at once. A signal that arrives after the last step is raised again on leaving the context. SIGHUP stays ignored if
    it is, as by `nohup`.
    """

    def __init__(self):
        self.signum = 0
        self._previous = {}

    def _note(self, signum: int, frame) -> None:
        self.signum = self.signum or signum
        leave_lost_terminal()

    def __enter__(self) -> "StopSignals":
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                if signal.Signals(signum).name != "SIGHUP" or signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if exc_type is None and self.signum:
            signal.raise_signal(self.signum)


def leave_lost_terminal(descriptors: Sequence[int] = (1, 2)) -> None:
    """Discard the output to a terminal that was closed. Otherwise the next line would end the run with an error."""
    for descriptor in descriptors:
        with suppress(OSError):
            # A closed terminal is still a character device, but no longer a terminal.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


@contextmanager
def explaining_full_disk(output_dir: str | os.PathLike) -> Iterator[None]:
    """Explain a full disk in one line, whichever file of the run it affects: log, latent cache or finished weights.

    Raises:
        RunStopped: In place of an `OSError` or `SafetensorError` about disk space. Other errors pass unchanged.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors gives the error number only in its message.
        if getattr(error, "errno", None) not in full and not any(f"(os error {code})" in str(error) for code in full):
            raise
        raise RunStopped(
            f"The run stopped because the disk is full ({error}); the checkpoints in {output_dir} are untouched."
            " Free some space, then resume with `--resume_from_checkpoint latest`."
        ) from error


def ignore_stop_signals(worker_id: int = 0) -> None:
    """Let a data worker ignore Ctrl-C (as `worker_init_fn`). The training process decides when its workers end."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
