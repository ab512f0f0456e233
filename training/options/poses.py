# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The options that say how poses are made, the same for one clip and for a data set."""

import argparse

from training.poses.clip_poses import PoseSettings
from training.poses.detections import PERSON_RULES


DENSEPOSE_HELP = "TorchScript DensePose, a file or OWNER/REPOSITORY/FILE on the Hub; it is code, so trust its source"


def add_pose_options(parser: argparse.ArgumentParser, needs_densepose: bool) -> None:
    """Add `--densepose`, `--device`, `--person`, `--max_gap` and `--median`.

    Args:
        parser (`argparse.ArgumentParser`): Of an entry point.
        needs_densepose (`bool`): Whether `--densepose` must be given.
    """
    add = parser.add_argument
    add("--densepose", required=needs_densepose, help=DENSEPOSE_HELP)
    add("--device", help="of DensePose (default: the best there is)")
    add("--person", choices=PERSON_RULES, default="largest", help="whom of several to follow (default: largest)")
    add("--max_gap", type=int, default=5, help="frames in a row without them that are filled (default: 5)")
    add("--median", type=int, default=0, metavar="RADIUS", help="calm flicker of U and V over time (default: 0, off)")


def pose_settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> PoseSettings:
    """The settings that `options` asks for; what they refuse ends in the parser's error.

    Args:
        parser (`argparse.ArgumentParser`): For the error.
        options (`argparse.Namespace`): What it parsed.
    Returns:
        `PoseSettings`: Whom to follow, and what becomes of gaps and flicker.
    """
    try:
        return PoseSettings(options.person, options.max_gap, options.median)
    except ValueError as error:
        parser.error(str(error))
