# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Fields of option dataclasses, and checks of their values.

Option modules import neither torch nor diffusers when they are imported, so that `--help` is quick. A check that needs
such a module imports it when it runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from training.engine.messages import shorten


LARGEST = 2**31 - 1  # of a count
LARGEST_SEED = 2**32 - 1  # that NumPy takes
LARGEST_SIDE = 8192  # pixels


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with its default and the text that `--help` shows for it."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def check(options: Any, rule: str, is_valid: Callable[[Any], bool], *names: str) -> None:
    """Raise a `ValueError` for the first of the named options that is set and breaks the rule."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not is_valid(value):
            raise ValueError(f"`{name}` must be {rule}, got {shorten(value)}.")


def check_counts(options: Any, *names: str, limit: int = LARGEST) -> None:
    """Raise a `ValueError` unless each named option is at least 1 and at most `limit`."""
    check(options, "at least 1", lambda value: value >= 1, *names)
    check_limit(options, limit, *names)


def check_limit(options: Any, limit: int, *names: str) -> None:
    """Raise a `ValueError` unless each named option is at most `limit`."""
    check(options, f"at most {limit}", lambda value: value <= limit, *names)


def check_not_negative(options: Any, *names: str) -> None:
    """Raise a `ValueError` unless each named option is finite and at least 0."""
    check(options, "a finite number, at least 0", lambda value: 0 <= value < math.inf, *names)


def check_positive(options: Any, *names: str) -> None:
    """Raise a `ValueError` unless each named option is finite and above 0."""
    check(options, "a finite number above 0", lambda value: 0 < value < math.inf, *names)


def check_choice(options: Any, name: str, choices: Sequence[str]) -> None:
    """Raise a `ValueError` unless the named option is one of the choices."""
    check(options, f"one of {', '.join(choices)}", lambda value: value in choices, name)


def check_size(options: Any) -> None:
    """Raise a `ValueError` unless `height` and `width` are positive multiples of 8."""
    check(options, "a positive multiple of 8", lambda value: value > 0 and value % 8 == 0, "height", "width")
    check_limit(options, LARGEST_SIDE, "height", "width")


def check_folder(options: Any, name: str) -> None:
    """Raise a `ValueError` unless the named option, if it is set, is a folder that can be written."""
    if getattr(options, name) is not None:
        from training.media.outputs import check_output

        check_output(name, getattr(options, name))
