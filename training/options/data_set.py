# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options for preparing a data set: where frames and poses come from, splits, and publishing."""

import argparse
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from training.data.row_settings import RowSettings
from training.options.densepose import add_pose_options, pose_settings
from training.poses.channel_order import CHANNEL_ORDERS


SPLITS = ("train", "validation", "test")
_LARGEST = 10**6


def add_data_set_options(parser: argparse.ArgumentParser) -> None:
    """Add all options, in groups."""
    group = parser.add_argument_group("frames (one of the first three)")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add("--frames_dir", type=Path, metavar="FOLDER", help="folder with one folder of pictures per clip")
    add("--video_dir", type=Path, metavar="FOLDER", help="folder with one video per clip")
    add("--ubc_fashion", action="store_true", help="download the videos of UBC Fashion")
    add = group.add_argument
    squeezed = "proportion of the true pictures, for frames that were squeezed into another one"
    add("--square_pixels", type=_proportion, metavar="W:H", help=squeezed)
    add("--max_video_mb", type=int, default=200, metavar="MB", help="largest video to download, in megabytes")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", required=True, type=Path, help="folder of the data set; the same command resumes")
    add("--dry_run", action="store_true", help="print clips, frames, sizes, gaps and splits, and write nothing")
    add("--num_proc", type=int, default=1, help="number of clips at a time; each loads its own DensePose")
    add = parser.add_argument_group("poses (--iuv_dir or --densepose)").add_argument
    add("--iuv_dir", type=Path, metavar="FOLDER", help="folder with the DensePose output of each clip, of its name")
    add("--channel_order", choices=["auto", *CHANNEL_ORDERS], default="auto", help="channel order of IUV pictures")
    add_pose_options(parser, needs_densepose=False)
    add = parser.add_argument_group("splits").add_argument
    add("--holdout_frames", type=float, metavar="SHARE", help="share of each clip, at its end, that becomes `test`")
    add("--validation_clips", type=int, default=0, metavar="N", help="clips to draw for `validation`")
    add("--test_clips", type=int, default=0, metavar="N", help="clips to draw for `test`")
    add("--split_seed", type=int, default=0, metavar="SEED", help="seed of the draw")
    add("--split_file", type=Path, metavar="CSV", help="lines CLIP,SPLIT that give each clip its split")
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="splits to prepare; all three by default")
    add = parser.add_argument_group("publishing").add_argument
    add("--push_to_hub", metavar="OWNER/NAME", help="publish ids, frame numbers and IUV, without pictures")
    add("--include_images", action="store_true", help="publish the pictures too; only for pictures that are your own")


def _proportion(text: str) -> tuple[int, int]:
    numbers = [int(word) for word in text.split(":") if word.isascii() and word.isdecimal()]
    if len(numbers) != 2 or not 1 <= min(numbers) <= max(numbers) <= min(_LARGEST, 10 * min(numbers)):
        raise argparse.ArgumentTypeError(f"must be W:H, two whole numbers such as 3:4, 10:1 at most, got {text!r}")
    return numbers[0], numbers[1]


def check_data_set_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check the parsed options, and add `settings`, those of the rows. Bad input ends in the parser's error."""
    for name, least, most in (
        ("num_proc", 1, 1024),
        ("max_video_mb", 1, _LARGEST),
        ("validation_clips", 0, _LARGEST),
        ("test_clips", 0, _LARGEST),
        ("split_seed", 0, 2**63 - 1),
        ("holdout_frames", 0.001, 0.9),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            rule = f"at least {least}" if value < least else f"at most {most}"
            parser.error(f"`--{name}` must be {rule}, got {value}.")
    for name in ("frames_dir", "video_dir", "iuv_dir"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"`--{name}` must be a folder, got {str(folder)!r}, which is none.")
    if (options.densepose is None) == (options.iuv_dir is None):
        parser.error("`--densepose` or `--iuv_dir` must be given, and not both: a model that makes poses, or poses.")
    _check_pairs(parser, options)
    try:
        validate_repo_id(options.push_to_hub or "owner/name")
    except HFValidationError as error:
        parser.error(f"`--push_to_hub` must be OWNER/NAME, got {options.push_to_hub!r}: {error}")
    poses = pose_settings(parser, options)
    options.settings = RowSettings(poses, options.channel_order, options.square_pixels)


def _check_pairs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that have no effect next to the others."""
    draws = options.validation_clips or options.test_clips
    ways = {"--split_file": options.split_file, "--validation_clips or --test_clips": draws}
    ways |= {"--holdout_frames": options.holdout_frames}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        parser.error(f"`{given[0]}` must be the only way to make splits, got `{given[1]}` too.")
    for name, is_used, what in (
        ("device", options.densepose, "`--densepose`"),
        ("channel_order", options.iuv_dir, "`--iuv_dir`"),
        ("max_video_mb", options.ubc_fashion, "`--ubc_fashion`"),
        ("split_seed", draws, "`--validation_clips` or `--test_clips`"),
        ("include_images", options.push_to_hub and not options.ubc_fashion, "`--push_to_hub` and your own pictures"),
    ):
        value = getattr(options, name)
        if not is_used and value != parser.get_default(name):
            parser.error(f"`--{name}` must go with {what}, got {value}.")
