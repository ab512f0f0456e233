# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options for making poses with DensePose, for one clip or a data set."""

import argparse
from collections.abc import Callable

from training.poses.clip_settings import PERSON_RULES, PoseSettings


DENSEPOSE_HELP = (
    "TorchScript DensePose: a file, or OWNER/REPOSITORY/FILE on the Hub; loading it runs its code, so trust its source"
)


def add_pose_options(parser: argparse.ArgumentParser, needs_densepose: bool) -> None:
    """Add a group with `--densepose`, which may be required, `--device`, `--person`, `--max_gap` and `--median`."""
    add = parser.add_argument_group("DensePose").add_argument
    add("--densepose", required=needs_densepose, metavar="MODEL", help=DENSEPOSE_HELP)
    add("--device", help="device for DensePose; by default a GPU if there is one")
    add_person_options(add)


def add_person_options(add: Callable[..., argparse.Action]) -> None:
    """Add `--person`, `--max_gap` and `--median` by the `add_argument` of a group."""
    add("--person", choices=PERSON_RULES, default="largest", help="the person to follow among several")
    add("--max_gap", type=int, default=5, metavar="FRAMES", help="longest gap in the person's frames that is filled")
    add("--median", type=int, default=0, metavar="RADIUS", help="temporal median of U and V against flicker; 0: off")


def pose_settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> PoseSettings:
    """Return the settings that the parsed `options` ask for. A value out of range ends in the parser's error."""
    try:
        return PoseSettings(options.person, options.max_gap, options.median)
    except ValueError as error:
        parser.error(str(error))
