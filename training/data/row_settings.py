# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Settings for the rows of a data set. Options import them, so they import no torch."""

from dataclasses import dataclass

from training.poses.clip_settings import PoseSettings


@dataclass(frozen=True)
class RowSettings:
    """How the frames and poses of a clip become rows.

    Args:
        poses (`PoseSettings`, *optional*): Person to follow, longest gap, median.
        channel_order (`str`, *optional*, defaults to `"auto"`): As in `match_poses`, for existing poses.
        square_pixels (`tuple[int, int]`, *optional*): As in `ClipFrames`.
    """

    poses: PoseSettings = PoseSettings()
    channel_order: str = "auto"
    square_pixels: tuple[int, int] | None = None
