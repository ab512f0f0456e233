# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stopping a training run by a signal: noted at once, acted upon after the step and its checkpoint."""

import signal
import threading


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingInterrupted(SystemExit):
    """Ends a run that was asked to stop, after its checkpoint; the exit code is 128 + the signal, as in a shell."""


class StopSignals:
    """While it is entered, the first SIGTERM or SIGINT is noted in `signum` (0 before); further ones change nothing.

    Under a launcher each process gets two: one with its group, one from the launcher. SIGKILL still ends it at once. A
    signal that is only noted on leaving, because it came after the last step, acts then.
    """

    def __init__(self):
        self.signum = 0
        self._previous = {}

    def _note(self, signum: int, frame) -> None:
        self.signum = self.signum or signum

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def __enter__(self) -> "StopSignals":
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
            for signum in STOP_SIGNALS:
                signal.signal(signum, self._note)
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        self._restore()
        if exc_type is None and self.signum:
            signal.raise_signal(self.signum)


def ignore_stop_signals(worker_id: int = 0) -> None:
    """For `worker_init_fn`: Ctrl-C reaches data workers too, but the training process decides when they end."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
