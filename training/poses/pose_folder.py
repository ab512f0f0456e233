# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Writing the poses of a clip into a folder that `animate.py --poses` reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.media.outputs import check_outputs, check_picture_folder, record_files, write_picture_folder
from training.media.timing import RATE_NAME, write_frame_rate


def check_pose_folder(argument: str, folder: Path) -> None:
    """Raise a `ValueError` that names the `argument` if [`write_poses`] cannot write a folder."""
    check_picture_folder(argument, folder)
    check_outputs(argument, [folder / RATE_NAME])


def write_poses(
    poses: Sequence[np.ndarray | Image.Image] | torch.Tensor, folder: Path, argument: str, fps: float | None = None
) -> None:
    """Write IUV pictures as numbered PNGs, or maps `[F, 2, H, W]` as `poses.npy`, and the frames per second if known.

    Raise a `ValueError` that names the `argument` if a file is there that no run recorded.
    """
    write_frame_rate(folder, fps, argument)
    if isinstance(poses, torch.Tensor):
        path = folder / "poses.npy"
        check_outputs(argument, [path])
        record_files([path])
        np.save(path, poses.numpy())
        print(f"{len(poses)} pose maps (U and V, there was no I): {path}")
    else:
        pictures = (pose if isinstance(pose, Image.Image) else Image.fromarray(pose) for pose in poses)
        write_picture_folder(pictures, folder, argument)
        print(f"{len(poses)} IUV frames: {folder}")
