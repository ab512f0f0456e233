# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Make a clip's poses: IUV frames that `animate.py --poses` reads, from a video or from DensePose output.

python training/extract_poses.py --input dance.mp4 --densepose model.pt --output_dir poses
python training/extract_poses.py --input densepose.pkl --size 640 512 --output_dir poses
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.engine.messages import naming_arguments
from training.engine.output_lock import locks_output
from training.options.command import CommandParser, run_command
from training.options.densepose import add_pose_options, pose_settings
from training.poses.channel_order import CHANNEL_ORDERS


if TYPE_CHECKING:
    import numpy as np
    import torch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    usage = "%(prog)s --input INPUT --output_dir FOLDER [--densepose MODEL] [--OPTION VALUE ...]"
    parser = CommandParser(usage=usage, description=__doc__)
    add = parser.add_argument_group("most used").add_argument
    source = "video or folder of pictures with --densepose; without it, a detectron2 dump (.pkl) or existing IUV"
    add("--input", required=True, type=Path, help=source)
    add("--output_dir", required=True, type=Path, help="folder for the IUV frames")
    add("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="size of a dump's pictures in pixels")
    order = "channel order of existing IUV pictures: R, G, B hold V, U, I or I, U, V; auto finds it"
    add("--channel_order", choices=["auto", *CHANNEL_ORDERS], default="auto", help=order)
    add_pose_options(parser, needs_densepose=False)
    options = parser.parse_args(argv)
    is_dump, has_model = options.input.suffix == ".pkl", options.densepose is not None
    options.settings = pose_settings(parser, options)
    for name, is_used, with_what in (
        ("densepose", not is_dump, "a video or a folder of pictures as `--input`"),
        ("device", has_model, "`--densepose`"),
        ("size", is_dump, "a dump (.pkl) as `--input`"),
        ("person", has_model or is_dump, "`--densepose` or a dump (.pkl)"),
        ("max_gap", has_model or is_dump or os.path.isdir(options.input), "`--densepose`, a dump (.pkl) or a folder"),
        ("channel_order", not (has_model or is_dump), "IUV pictures as `--input`"),
    ):
        if not is_used:
            parser.refuse(argv, [name], f"only with {with_what}")
    if is_dump and options.size is None:
        parser.error(f"`--size HEIGHT WIDTH` must be given for a dump, which does not store it: {options.input}.")
    if is_dump and min(options.size) < 1:
        parser.error(f"`--size` must be at least 1 pixel, got {options.size}.")
    return options


def convert(options: argparse.Namespace) -> "Sequence[np.ndarray] | torch.Tensor":
    """Read IUV, or pose maps where there is no I, from files that DensePose wrote."""
    import numpy as np
    import torch

    from training.poses.channel_order import find_channel_order
    from training.poses.clip_poses import read_dumped_poses
    from training.poses.flicker import temporal_median
    from training.poses.pose_files import read_poses

    if options.input.suffix == ".pkl":
        return read_dumped_poses(options.input, *options.size, options.settings)
    poses = read_poses(options.input, options.settings.max_gap, check_order=False)
    stated = None if options.channel_order == "auto" else options.channel_order
    if isinstance(poses, torch.Tensor):
        for name, value, unused in (("median", options.median, 0), ("channel_order", stated, None)):
            if value != unused:
                raise ValueError(f"`{name}` must not be given for maps of U and V without part codes, got {value!r}.")
        return poses
    frames = [np.asarray(pose) for pose in poses]
    order, notice = find_channel_order(frames, stated)
    if notice:
        print(f"notice: {notice}; --channel_order decides")
    frames = [np.ascontiguousarray(frame[..., CHANNEL_ORDERS[order]]) for frame in frames]
    return temporal_median(frames, options.median) if options.median else frames


@locks_output("output_dir", is_folder=True)
def main(options: argparse.Namespace) -> None:
    """Make the poses and write them to `output_dir`."""
    from accelerate import PartialState

    from training.media.pictures import spare_inputs
    from training.media.timing import frame_rate
    from training.poses.clip_poses import estimate_poses
    from training.poses.estimator import DensePoseEstimator
    from training.poses.pose_folder import check_pose_folder, write_poses

    spare_inputs("output_dir", [options.output_dir], [options.input])
    check_pose_folder("output_dir", options.output_dir)
    with naming_arguments(poses="input", path="input", frames="input"):
        fps = frame_rate(options.input)
        if options.densepose:
            estimator = DensePoseEstimator(options.densepose, options.device or PartialState().device)
            frames = estimate_poses(options.input, estimator, options.settings)
        else:
            frames = convert(options)
    if getattr(frames, "filled", None):
        print(f"frames without the person, filled from neighbouring frames: {frames.filled}")
    write_poses(frames, options.output_dir, "output_dir", fps)


if __name__ == "__main__":
    run_command(parse_args, main, "The input is unchanged. The same command makes the poses again.", extra=None)
