# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Errors of a run that are no fault of the code."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class RunStopped(RuntimeError):
    """A run that cannot continue: a full disk, or a loss that stays non-finite. Commands end in its one line."""


@contextmanager
def naming_data_set(argument: str) -> Iterator[None]:
    """Name the argument in a `ValueError` that begins with "The data set" or "`dataset`"."""
    try:
        yield
    except ValueError as error:
        text, found = re.subn("^(The data set|`dataset`) ", f"`{argument}` ", str(error))
        if not found:
            raise
        raise ValueError(text) from error
