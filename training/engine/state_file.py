# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Reading and checking `state.json` of a checkpoint, and the hashes in it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from training.engine.messages import shorten


STATE_NAME = "state.json"
HASHES = "sha256"


class StateFault(ValueError):
    """A fault of `state.json`, described in full by its message."""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def _is_mapping(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_item, value.values()))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_window(value: Any) -> bool:
    """Whether a value holds the fields of a `LogWindow`."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"values", "num_samples", "seconds"}
        and _is_mapping(value.get("values", {}), lambda numbers: _is_list(numbers, _is_number))
        and _is_count(value.get("num_samples", 0))
        and _is_number(value.get("seconds", 0))
    )


def _are_positions(value: Any) -> bool:
    """Whether a value holds three whole numbers for each data worker of each process."""
    return _is_list(value, lambda workers: _is_list(workers, _is_position) and workers != []) and value != []


def _is_position(value: Any) -> bool:
    return _is_list(value, _is_count) and len(value) == 3


# Keys of `state.json` that resuming reads: their kind, in words, and as a test. Older versions wrote not all of them.
STATE_RULES = {
    **dict.fromkeys(("global_step", "num_samples", "num_skipped_steps"), ("a whole number of at least 0", _is_count)),
    "files": ("sizes by file name", lambda value: _is_mapping(value, _is_count) and all(map(_is_plain_name, value))),
    HASHES: ("hashes by file name", lambda value: _is_mapping(value, lambda item: isinstance(item, str))),
    "optimizer": ("a name", lambda value: isinstance(value, str)),
    "ema_optimization_step": ("a whole number or null", lambda value: value is None or _is_count(value)),
    "scaler": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "log_windows": ("a list of log windows", lambda value: _is_list(value, _is_window)),
    "stream_positions": ("lists of positions or null", lambda value: value is None or _are_positions(value)),
    "world": ("an object", lambda value: isinstance(value, dict) and _is_count(value.get("global_batch_size", 0))),
}


def _is_plain_name(name: str) -> bool:
    return Path(name).name == name


def require_keys(path: Path | None, values: Mapping[str, Any], *names: str) -> None:
    """Raise a `ValueError` that names the first of these keys that `values`, a part of a state file, lacks."""
    for name in names:
        if name not in values:
            raise ValueError(
                "`resume_from_checkpoint` must be a checkpoint of this kind of run, got"
                f" {path / STATE_NAME} without the key `{name}`."
            )


def read_state(path: Path) -> dict[str, Any]:
    """Read `state.json` and check the kinds of its values."""
    state = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise StateFault(f"{STATE_NAME} must hold one object, got {shorten(state)}")
    for name in ("global_step", "files"):
        if name not in state:
            raise StateFault(f"{STATE_NAME} must have the key `{name}`, got none")
    for name, (kind, is_right) in STATE_RULES.items():
        if name in state and not is_right(state[name]):
            raise StateFault(f"`{name}` in {STATE_NAME} must be {kind}, got {shorten(state[name])}")
    return state


def hash_state(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state's values without the hashes."""
    text = json.JSONEncoder().encode({name: value for name, value in state.items() if name != HASHES})
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file. A file that has not changed is read once per process."""
    facts = path.stat()
    return _hash_version(path.resolve(), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@lru_cache
def _hash_version(path: Path, *version: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
