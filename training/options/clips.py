# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of commands that sample clips, and the checks of their values."""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from training.engine.messages import shorten
from training.options.command import CommandParser


RUN_OPTIONS = ("output", "resume", "overwrite")  # no figure depends on them
_COUNT = ("at least 1", lambda value: value >= 1)
_NOT_NEGATIVE = ("at least 0", lambda value: value >= 0)
_GUIDANCE_SCALE = ("a finite number, at least 0", lambda value: 0 <= value < math.inf)
RULES = {
    "num_clips": _COUNT,
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
    "strip_frames": _COUNT,
    "start": _NOT_NEGATIVE,
    "end": _COUNT,
    "every": _COUNT,
    "fps": ("within [0.01, 1000]", lambda value: 0.01 <= value <= 1000),
    "height": _COUNT,
    "width": _COUNT,
    "grid": _GUIDANCE_SCALE,
    "subject": _NOT_NEGATIVE,
    "motion": _NOT_NEGATIVE,
    "num_frames": _COUNT,
}
# Above these, time or memory would run out, or a scale be meaningless. The pipeline has the same limit of the scales.
LIMITS = {"num_inference_steps": 1000, "steps": 1000, "reference_steps": 1000, "height": 8192, "width": 8192}
LIMITS |= dict.fromkeys(("num_clips", "frames_per_clip", "num_consecutive", "num_pictures", "strip_frames"), 10**6)
LIMITS |= dict.fromkeys(("image_guidance_scale", "pose_guidance_scale", "image_scales", "pose_scales", "grid"), 1000)
LIMITS |= dict.fromkeys(("start", "end", "every"), 10**6)
LIMITS |= {"scale": 16, "chunk_size": 10**6, "subject": 2**31, "motion": 2**31, "num_frames": 10**4}


def add_clip_options(parser: argparse.ArgumentParser, split: str, num_clips: int, frames_per_clip: int) -> None:
    """Add a group for the clips, with these defaults of `--split`, `--num_clips` and `--frames_per_clip`."""
    add = parser.add_argument_group("held-out clips").add_argument
    add(
        "--dataset",
        default="procedural",
        help="`procedural` (160x128 pixels), `procedural/half`, a prepared folder or a Hub id",
    )
    add("--split", default=split, help="split of the data set")
    add("--num_clips", type=int, default=num_clips, help="number of clips, from the first")
    add("--frames_per_clip", type=int, default=frames_per_clip, help="target frames per clip")
    add("--photo_split", help="split whose first frame of each clip is the photo; by default that of `--split`")


def add_loading_options(add: Callable[..., argparse.Action]) -> None:
    """Add `--revision`, `--device` and `--dtype` by the `add_argument` of a group."""
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--device", help="cpu, cuda, mps, ...; by default a GPU if there is one")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="number format; by default float16 on CUDA")


def parse_loading(parser: CommandParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. End in the parser's error if `--revision` is given with a `--model` that is a folder."""
    options = parser.parse_args(argv)
    if os.path.isdir(options.model):
        parser.refuse(argv, ["revision"], "only with a `--model` on the Hub")
    return options


def add_resume_options(group: argparse._ActionsContainer, unit: str) -> None:
    """Add `--resume` and `--overwrite` to a group; `unit` names the finished parts of a stopped run."""
    group.add_argument("--resume", action="store_true", help=f"keep the {unit} that a stopped run measured")
    group.add_argument("--overwrite", action="store_true", help=f"delete the {unit} that a stopped run measured")


def check_ranges(options: argparse.Namespace) -> None:
    """Check the options in `RULES` and `LIMITS`; in a list, each value.

    Raise a `ValueError` for the first value that is set and breaks its rule, or for `resume` with `overwrite`.
    """
    if getattr(options, "resume", False) and getattr(options, "overwrite", False):
        raise ValueError("`overwrite` must be given without `resume`, got both.")
    for name, (rule, is_valid) in RULES.items():
        for value in _flatten(getattr(options, name, None)):
            if not is_valid(value):
                raise ValueError(f"`{name}` must be {rule}, got {shorten(value)}.")
            if name in LIMITS and value > LIMITS[name]:
                raise ValueError(f"`{name}` must be at most {LIMITS[name]}, got {shorten(value)}.")


def _flatten(values: Any) -> Iterator[Any]:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, list):
            yield from _flatten(value)
        elif value is not None:
            yield value


def check_clip_options(options: argparse.Namespace) -> None:
    """Check the options of an entry point before anything is loaded or drawn: those of [`check_ranges`], and `device`.

    Raise a `ValueError` for the first value that is set and breaks its rule.
    """
    check_ranges(options)
    if getattr(options, "device", None) is not None:
        from training.engine.devices import check_device

        check_device(options.device)
