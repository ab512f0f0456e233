# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of commands that sample held-out clips, and the checks of their values."""

import argparse
import math


_COUNT = ("at least 1", lambda value: value >= 1)
_NOT_NEGATIVE = ("at least 0", lambda value: value >= 0)
_GUIDANCE_SCALE = ("a finite number, at least 0", lambda value: 0 <= value < math.inf)
RULES = {
    "num_clips": ("at least 2", lambda value: value >= 2),  # each clip is compared with another one
    "frames_per_clip": _COUNT,
    "num_consecutive": ("0 or at least 3", lambda value: value == 0 or value >= 3),  # flicker needs three frames
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
    """Add a group with `--dataset` and, with these defaults, `--split`, `--num_clips` and `--frames_per_clip`."""
    add = parser.add_argument_group("held-out clips").add_argument
    add("--dataset", default="procedural", help="`procedural`, a prepared folder or a Hub id")
    add("--split", default=split, help="split of the data set")
    add("--num_clips", type=int, default=num_clips, help="number of clips, from the first")
    add("--frames_per_clip", type=int, default=frames_per_clip, help="target frames per clip")


def check_clip_options(options: argparse.Namespace) -> None:
    """Check the options of an entry point before anything is loaded or drawn: those in `RULES`, and `device`.

    Raise a `ValueError` for the first value that is set and breaks its rule; in a list, each value is checked.
    """
    for name, (rule, is_valid) in RULES.items():
        values = getattr(options, name, None)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not is_valid(value):
                raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
    if getattr(options, "device", None) is not None:
        from training.engine.devices import check_device

        check_device(options.device)
