# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Errors of a run that are no fault of the code."""


class RunStopped(RuntimeError):
    """A run that cannot continue: a full disk, or a loss that stays non-finite. Commands end in its one line."""
