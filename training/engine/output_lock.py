# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Lock on the output of a run, so that two runs never write to one place. It ends with its process, also by a kill."""

import errno
import functools
import logging
import os
import re
import stat
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
# These neither follow a link nor wait for a pipe. Windows has the last one only.
_OPEN_FLAGS = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
# Process and path of each lock that is held here. The operating system never refuses a process its own lock.
_held: set[tuple[int, str]] = set()


@contextmanager
def locked_output(file: Path, argument: str) -> Iterator[None]:
    """Hold a lock file, and remove it at the end. Where no file can be made, nothing is locked.

    The operating system frees the lock when this process ends, even by a kill. Child processes do not inherit it.

    Raises:
        ValueError: If another run holds the lock, or the file is not a lock. The message names `argument`.
    """
    new_folders, opened, own = [], None, None
    try:
        new_folders = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        own = os.getpid(), str(file.parent.resolve() / file.name)
        if own in _held:
            raise _in_use(file, argument, own[0])
        opened = _acquire(file, argument)
        _held.add(own)
    except OSError:
        pass  # the run cannot write there either, and says why
    try:
        yield
    finally:
        if opened is not None:
            if fcntl is None:
                opened.close()  # Windows removes no open file
            with suppress(OSError):
                file.unlink()  # elsewhere while it is locked, so that nobody's new lock is removed
            opened.close()
            _held.discard(own)
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
        opened = _open(file, argument)
        try:
            _lock(opened)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                opened.seek(0)
                owner = opened.read(20).decode("ascii", "replace") or "unknown"
                opened.close()
                raise _in_use(file, argument, owner) from error
            logger.warning(f"{file} cannot be locked ({error.strerror}): let no second run use this `{argument}`.")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), os.lstat(file)):
                opened.truncate(0)
                opened.write(str(os.getpid()).encode())
                return opened
        opened.close()


def _open(file: Path, argument: str) -> BinaryIO:
    """Open a lock file or make one. Another file, a link, a folder or a pipe is refused, and never changed."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise _not_a_lock(file, argument)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | sum(_OPEN_FLAGS), 0o666)
    opened = os.fdopen(descriptor, "r+b", buffering=0)
    if not re.fullmatch(rb"[0-9]{0,20}", opened.read(21)):
        opened.close()
        raise _not_a_lock(file, argument)
    opened.seek(0)
    return opened


def _in_use(file: Path, argument: str, owner: int | str) -> ValueError:
    return ValueError(
        f"`{argument}` must not be in use by another run, got {str(file.parent)!r}, where process {owner} holds"
        f" {file.name}: wait for its end, or choose another `{argument}`."
    )


def _not_a_lock(file: Path, argument: str) -> ValueError:
    return ValueError(
        f"`{argument}` must leave the name {file.name} to the lock of a run, got {str(file.parent)!r}, where it is"
        f" something else: move it away, or choose another `{argument}`."
    )


def _lock(opened: BinaryIO) -> None:
    if fcntl is not None:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        opened.seek(_LOCKED_BYTE)
        msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)
