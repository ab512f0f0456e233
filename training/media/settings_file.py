# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Settings file of an output folder, which a resumed run must match, and writing files whole or not at all."""

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.engine.messages import one_line, shorten


def has_settings(path: Path, settings: dict[str, Any], name: str) -> bool:
    """Return whether a settings file exists, after checking that it holds these settings.

    Raises:
        ValueError: If settings differ or cannot be read. The message lists them and names the argument `name`, which
            asked to resume.
    """
    if not path.is_file():
        return False
    before = read_json(path, name)
    changed = [
        f"{key} {shorten(before.get(key))}, now {shorten(settings.get(key))}"
        for key in sorted(before | settings)
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise ValueError(f"`{name}` must keep the settings of {str(path.parent)!r}, got {'; '.join(changed)}.")
    return True


def read_json(path: Path, argument: str, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds one object with these keys.

    Raises:
        ValueError: If the file holds anything else. The message names `argument`, the file and the key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"which cannot be read: {one_line(error, 200)}"
    else:
        if isinstance(content, dict) and all(key in content for key in keys):
            return content
        missing = [key for key in keys if key not in content] if isinstance(content, dict) else []
        reason = f"which has no `{missing[0]}`" if missing else f"which holds a {type(content).__name__}, no object"
    raise ValueError(f"`{argument}` must hold files that runs wrote and nobody changed, got {str(path)!r}, {reason}.")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under a temporary name and rename it when it is whole. Its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def partial_path(path: Path) -> Path:
    """Return a temporary path next to a file that no other process uses, on this machine or another.

    Process ids would not do: two containers may have the same ones.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def partial_pattern(pattern: str) -> str:
    """Return a regular expression for the names of [`partial_path`], from one for the names of the files."""
    return rf"\.(?:{pattern})(?:\.[0-9a-f]{{32}})?\.partial"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends, and is deleted if the block fails.

    Temporary files that killed runs left of this path are deleted first, so no other process may be writing it: the
    lock of a run's output is that of the stem, whatever the suffix. Its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(".*.partial"):
        if re.fullmatch(partial_pattern(re.escape(path.name)), leftover.name):
            leftover.unlink()
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove half-written files (`.*.partial`) of killed runs below a folder, which need not exist.

    Only files older than an hour go: another process may be writing now, but no file takes that long.
    """
    for path in folder.rglob(".*.partial"):
        try:
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()
        except FileNotFoundError:
            continue  # it was finished, or another process removed it
