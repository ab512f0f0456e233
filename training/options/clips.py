# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The options of whatever samples held-out clips, and what of them is refused before anything is loaded or drawn."""

import argparse
import math

from training.engine.devices import check_device


_COUNT = ("at least 1", lambda value: value >= 1)
_NOT_NEGATIVE = ("at least 0", lambda value: value >= 0)
_GUIDANCE_SCALE = ("a finite number, at least 0", lambda value: 0 <= value < math.inf)
RULES = {
    "num_clips": ("at least 2", lambda value: value >= 2),  # of which each is another one's counterpart
    "frames_per_clip": _COUNT,
    "num_consecutive": ("0 or at least 3", lambda value: value == 0 or value >= 3),  # flicker is of three frames
    "num_inference_steps": _COUNT,
    "steps": _COUNT,
    "reference_steps": _COUNT,
    "image_guidance_scale": _GUIDANCE_SCALE,
    "pose_guidance_scale": _GUIDANCE_SCALE,
    "image_scales": _GUIDANCE_SCALE,
    "pose_scales": _GUIDANCE_SCALE,
    "chunk_size": _COUNT,
    "seed": ("within [0, 2^63)", lambda value: 0 <= value < 2**63),
    "num_pictures": _NOT_NEGATIVE,
    "scale": _COUNT,
}


def add_clip_options(parser: argparse.ArgumentParser, split: str, num_clips: int, frames_per_clip: int) -> None:
    """Add `--dataset`, `--split`, `--num_clips` and `--frames_per_clip`.

    Args:
        parser (`argparse.ArgumentParser`): Of an entry point.
        split, num_clips, frames_per_clip: The defaults.
    """
    add = parser.add_argument
    add("--dataset", default="procedural", help="`procedural`, a prepared folder or a Hub id (default: procedural)")
    add("--split", default=split, help=f"of the data set (default: {split})")
    add("--num_clips", type=int, default=num_clips, help=f"the first so many (default: {num_clips})")
    targets = f"target frames of each (default: {frames_per_clip})"
    add("--frames_per_clip", type=int, default=frames_per_clip, help=targets)


def check_clip_options(options: argparse.Namespace) -> None:
    """Refuse what no run can work with, whatever the data set and the model.

    Args:
        options (`argparse.Namespace`): Of an entry point; those of `RULES` and `device` that it has and that are set
            are looked at, of a list each value.
    Raises:
        ValueError: For the first that breaks its rule.
    """
    for name, (rule, is_valid) in RULES.items():
        values = getattr(options, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not is_valid(value):
                raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
    device = getattr(options, "device", None)
    if device is not None:
        check_device(device)
