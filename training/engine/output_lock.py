# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Lock on the output of a run, so that two runs never write to one place. It ends with its process, also by a kill."""

import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None
    import msvcrt

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# Launchers give each process its number in one of these.
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
# On Windows a locked byte cannot be read, so the lock is on one behind the text.
_LOCKED_BYTE = 1 << 20


@contextmanager
def locked_output(file: Path, argument: str) -> Iterator[None]:
    """Hold a lock file, and remove it at the end. Where no file can be made, nothing is locked.

    The operating system frees the lock when this process ends, even by a kill. Child processes do not inherit it.

    Raises:
        ValueError: If another process holds the lock. The message says that `argument` is in use.
    """
    new_folders = []
    try:
        new_folders = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = _acquire(file, argument)
    except OSError:
        opened = None  # the run cannot write there either, and says why
    try:
        yield
    finally:
        if opened is not None:
            if fcntl is None:
                opened.close()  # Windows removes no open file
            with suppress(OSError):
                file.unlink()  # elsewhere while it is locked, so that nobody's new lock is removed
            opened.close()
        with suppress(OSError):
            for folder in new_folders:
                folder.rmdir()  # unless the run has written to it


def locks_output(argument: str, is_folder: bool) -> Callable[[Callable], Callable]:
    """Decorate an entry point's `main(options)`: its main process holds the lock of the output `options.argument`.

    The lock file is in the folder, or next to the files of that stem.
    """

    def decorate(main: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(main)
        def locked_main(options: Any) -> Any:
            output = Path(getattr(options, argument))
            if any(os.environ.get(name, "0") != "0" for name in RANK_NAMES) or "\0" in str(output):
                return main(options)
            file = output / LOCK_NAME if is_folder else output.parent / f".{output.stem}{LOCK_NAME}"
            with locked_output(file, argument):
                return main(options)

        return locked_main

    return decorate


def _acquire(file: Path, argument: str) -> BinaryIO:
    """Lock a file and write the number of this process to it. Start again if its last owner has just removed it."""
    while True:
        opened = open(file, "a+b", buffering=0)
        try:
            _lock(opened)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                opened.seek(0)
                owner = opened.read(20).decode("ascii", "replace") or "unknown"
                opened.close()
                raise ValueError(
                    f"`{argument}` must not be in use by another run, got {str(file.parent)!r}, where process {owner}"
                    f" holds {file.name}: wait for its end, or choose another `{argument}`."
                ) from error
            logger.warning(f"{file} cannot be locked ({error.strerror}): let no second run use this `{argument}`.")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), os.stat(file)):
                opened.truncate(0)
                opened.write(str(os.getpid()).encode())
                return opened
        opened.close()


def _lock(opened: BinaryIO) -> None:
    if fcntl is not None:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        opened.seek(_LOCKED_BYTE)
        msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)
