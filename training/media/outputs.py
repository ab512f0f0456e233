# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Checks of where a command writes, and the record of what runs wrote: no other file is replaced or deleted."""

import os
import re
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image

from training.engine.messages import shorten
from training.media.settings_file import partial_path, partial_pattern


RECORD_NAME = ".dreampose_frames"  # in a folder: the names of the files that runs wrote there, one per line
FRAME_NUMBER = "[1-9]?[0-9]{5}"  # in the name of a frame's file, with zeros in front up to five digits
NUMBERED = re.compile(rf"{FRAME_NUMBER}\.png")
# In bytes. File systems take 255 and 4095, and partial files and checkpoints have longer names than the output.
MAX_NAME, MAX_PATH = 200, 3500


def check_output(argument: str, path: str | os.PathLike, is_folder: bool = True) -> None:
    """Check that a folder, or a file, can be written at `path`, without changing anything.

    Raises:
        ValueError: If the path is empty, of the other kind, below a file, read-only or too long. It names `argument`.
    """
    text, path, reason = os.fspath(path), Path(path), None
    whole = path.absolute()
    found = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    is_new, is_in_folder, new_names = found != whole, found.is_dir(), whole.relative_to(found).parts
    if not text:
        reason = "which is empty"
    elif "\0" in text:
        reason = "which has a null character"
    elif len(os.fsencode(whole)) > MAX_PATH or any(len(os.fsencode(name)) > MAX_NAME for name in new_names):
        reason = f"which is too long: a name may have {MAX_NAME} bytes, and the path {MAX_PATH}"
    elif not found.exists():
        reason = f"but {shorten(str(found))} is a link that leads nowhere"
    elif is_new and not is_in_folder:
        reason = f"which is below the file {shorten(str(found))}"
    elif not is_new and is_in_folder != is_folder:
        reason = "which is a folder" if is_in_folder else "which is a file"
    elif not os.access(found, os.W_OK | (os.X_OK if is_in_folder else 0)):
        reason = f"but {shorten(str(found))} is read-only"
    elif is_in_folder and not _takes_files(found):
        reason = f"but {shorten(str(found))} takes no files"
    if reason is not None:
        kind = "a folder" if is_folder else "a file"
        raise ValueError(f"`{argument}` must be {kind} that can be written, got {shorten(text)}, {reason}.")


def _takes_files(folder: Path) -> bool:
    """Return whether a file can be made in a folder. Permissions do not tell: `/proc` has those of any folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_outputs(argument: str, paths: Sequence[Path], overwrite: bool | None = None) -> None:
    """Check each path by [`check_output`] if it has a suffix, and as a folder by [`check_picture_folder`] if not.

    A file that no run recorded may be replaced with `overwrite`, which is `None` if the command has no such option.

    Raises:
        ValueError: If a path cannot be written, such a file is there and `overwrite` is not set, or a folder's record
            is no file.
    """
    for path in paths:
        if not path.suffix:
            check_picture_folder(argument, path)
            continue
        check_output(argument, path, is_folder=False)
        recorded = _recorded(path.parent, argument)
        if path.exists() and not overwrite and path.name not in recorded:
            advice = "" if overwrite is None else ", or give `--overwrite` to replace it"
            raise ValueError(
                f"`{argument}` must replace only files of earlier runs, got {shorten(str(path))}, which no run"
                f" recorded. Move it away or name another `{argument}`{advice}."
            )


def record_files(paths: Iterable[Path]) -> None:
    """Add files to the records of their folders, before a run writes them. Folders are created if missing.

    Paths without a suffix are left out: they are folders, in which [`write_picture_folder`] keeps a record.
    """
    for path in (path for path in paths if path.suffix):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name not in _recorded(path.parent):
            with (path.parent / RECORD_NAME).open("a", encoding="utf-8") as record:
                record.write(f"{path.name}\n")


def _recorded(folder: Path, argument: str = "path") -> set[str]:
    """Return the names in a folder's record; none without one. Refuse a link, a pipe or a folder of its name."""
    record = folder / RECORD_NAME
    try:
        if not stat.S_ISREG(record.lstat().st_mode):
            raise ValueError(
                f"`{argument}` must leave the name {RECORD_NAME} to the record of what runs wrote, got"
                f" {shorten(str(folder))}, where it is something else: move it away or name another `{argument}`."
            )
        return set(record.read_text(encoding="utf-8", errors="replace").splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return set()


def check_picture_folder(argument: str, path: str | os.PathLike) -> None:
    """Check that [`write_picture_folder`] can write a folder, and that its numbered PNGs are all from earlier runs.

    Raises:
        ValueError: If it cannot, or a numbered PNG is not in the folder's record or no file. The message names
            `argument`.
    """
    folder = Path(path)
    check_output(argument, folder)
    recorded = _recorded(folder, argument)
    numbered = [file for file in folder.glob("*.png") if NUMBERED.fullmatch(file.name)]
    foreign = sorted(file.name for file in numbered if file.name not in recorded or file.is_dir())
    if foreign:
        raise ValueError(
            f"`{argument}` must be a folder whose numbered PNGs are of an earlier run, which may replace them, got"
            f" {shorten(str(path))} with {foreign[0]}, which no run recorded. Move it away or name another folder."
        )


def write_frame(frame: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name and rename it when it is whole. A link of that name is replaced."""
    partial = partial_path(path)
    frame.save(partial, "PNG")
    os.replace(partial, path)


def write_picture_folder(frames: Iterable[Image.Image], path: str | os.PathLike, argument: str = "path") -> int:
    """Write pictures as numbered PNGs into a folder, and return their number. PNGs of an earlier video are deleted.

    Each PNG appears when its picture comes. If the folder holds an earlier video, they replace it together, after the
    last one, so that a run that stops before leaves the earlier video as it was. A record in the folder names each
    file before it is written, so that other files are neither deleted nor replaced.

    Raises:
        ValueError: See [`check_picture_folder`].
    """
    folder = Path(path)
    check_picture_folder(argument, folder)
    folder.mkdir(parents=True, exist_ok=True)
    before, written, waiting = _recorded(folder), [], {}
    others = {name for name in before if not NUMBERED.fullmatch(name)}
    has_video = any(os.path.lexists(folder / name) for name in before - others)
    leftovers = [file for file in folder.glob(".*") if re.fullmatch(partial_pattern(NUMBERED.pattern), file.name)]
    try:
        with (folder / RECORD_NAME).open("a", encoding="utf-8") as record:
            for index, frame in enumerate(frames):
                written.append(f"{index:05d}.png")
                if has_video:
                    waiting[written[-1]] = partial_path(folder / written[-1])
                    frame.save(waiting[written[-1]], "PNG")
                else:
                    _record(record, written[-1:])
                    write_frame(frame, folder / written[-1])
            _record(record, waiting)
        for name, partial in waiting.items():
            os.replace(partial, folder / name)
    finally:
        for partial in waiting.values():
            partial.unlink(missing_ok=True)
    for file in [*leftovers, *(folder / name for name in before.difference(others, written))]:
        file.unlink(missing_ok=True)
    partial = partial_path(folder / RECORD_NAME)
    partial.write_text("".join(f"{name}\n" for name in [*sorted(others), *written]), encoding="utf-8")
    os.replace(partial, folder / RECORD_NAME)
    return len(written)


def _record(record: TextIO, names: Iterable[str]) -> None:
    """Add names to an open record, at once."""
    record.writelines(f"{name}\n" for name in names)
    record.flush()
