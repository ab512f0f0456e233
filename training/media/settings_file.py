# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The settings that everything in a folder was made with, in a file of it: a run that goes on there must be the same
run."""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any


def has_settings(path: Path, settings: dict[str, Any], name: str) -> bool:
    """Whether a folder was begun with these settings.

    Args:
        path (`Path`): Its settings file.
        settings (`dict[str, Any]`): As JSON.
        name (`str`): The argument that asked to go on there, for the message.
    Returns:
        `bool`: `False` if there is no such file.
    Raises:
        ValueError: If the settings differ; names each.
    """
    if not path.is_file():
        return False
    before = json.loads(path.read_text())
    changed = [
        f"{key} {before.get(key)!r}, now {settings.get(key)!r}"
        for key in sorted(before | settings)
        if before.get(key) != settings.get(key)
    ]
    if changed:
        raise ValueError(f"`{name}` must go on with the settings of {str(path.parent)!r}, got {'; '.join(changed)}.")
    return True


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears under its name when it is whole.

    Args:
        path (`Path`): The file; its folder is made.
        value (`Any`): What JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def partial_path(path: Path) -> Path:
    """Where a file is written until it is whole: beside it, under a name that no other process, on this machine or
    another, has (two containers may well give their processes one number)."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs had half written below a folder, `.*.partial`.

    Only what is an hour old: another process may be writing there now, and no file takes as long.

    Args:
        folder (`Path`): It need not exist.
    """
    for path in folder.rglob(".*.partial"):
        try:
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()
        except FileNotFoundError:
            continue  # it was finished, or another process removed it
