# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What stops a run from outside: a signal, acted upon after the step and its checkpoint, or a full disk."""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


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


@contextmanager
def explaining_full_disk(output_dir: str | os.PathLike) -> Iterator[None]:
    """Say what a full disk means for a run, whichever of its files found no room: log, latent cache, finished weights.

    Raises:
        RuntimeError: In place of an `OSError` or `SafetensorError` for lack of room; others pass as they are.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has the number in its message alone.
        if getattr(error, "errno", None) not in full and not any(f"(os error {code})" in str(error) for code in full):
            raise
        raise RuntimeError(
            f"The run stopped for lack of room on the disk ({error}); the checkpoints in {output_dir} are untouched."
            " Free some, and go on with `--resume_from_checkpoint latest`."
        ) from error


def ignore_stop_signals(worker_id: int = 0) -> None:
    """For `worker_init_fn`: Ctrl-C reaches data workers too, but the training process decides when they end."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
