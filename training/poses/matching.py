# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Existing DensePose output for the frames of a clip, matched by the numbers in file names."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.engine.messages import shorten
from training.poses.channel_order import CHANNEL_ORDERS, find_channel_order
from training.poses.clip_poses import ClipDropped, follow_through_clip
from training.poses.clip_settings import PoseSettings
from training.poses.detections import read_dump
from training.poses.flicker import temporal_median
from training.poses.gaps import fill_gaps, frame_numbers
from training.poses.pose_files import VIDEO_SUFFIXES, read_pose_frames


DUMP_SUFFIX = ".pkl"
POSE_SUFFIXES = (".npy", DUMP_SUFFIX, *VIDEO_SUFFIXES)  # of poses that are one file per clip


@dataclass(frozen=True)
class MatchedPoses:
    """Poses of a clip's frames.

    Args:
        poses (`Sequence[np.ndarray]`): One IUV picture per frame, uint8 `[H, W, 3]` as V, U, I, of the frames' size.
        filled (`list[int]`): Places of the frames without a pose of their own, which copy their neighbour's.
        notices (`list[str]`): Sentences about what did not match.
    """

    poses: Sequence[np.ndarray]
    filled: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def match_poses(
    path: str | os.PathLike,
    numbers: Sequence[int] | None,
    num_frames: int,
    size: tuple[int, int],
    settings: PoseSettings = PoseSettings(),
    channel_order: str = "auto",
    stretch: bool = False,
) -> MatchedPoses:
    """Read the poses of a clip and give each frame its own.

    Args:
        path (`str` or `os.PathLike`): A detectron2 dump (`.pkl`), or what [`read_poses`] reads.
        numbers (`Sequence[int]`, *optional*): The frames' numbers; empty if their names have none, `None` for a video.
        num_frames (`int`): Number of frames.
        size (`tuple[int, int]`): Width and height of the frames in pixels.
        settings (`PoseSettings`, *optional*): Person to follow in a dump, longest gap, median.
        channel_order (`str`, *optional*, defaults to `"auto"`): A key of `CHANNEL_ORDERS`, or `"auto"` to find it.
        stretch (`bool`, *optional*, defaults to `False`): The poses were squeezed as the frames were, and any
            proportion of theirs fits.
    Raises:
        ClipDropped: If the poses cannot be read or do not fit the frames.
    """
    notices, unused = [], []
    try:
        if Path(path).suffix.lower() == DUMP_SUFFIX:
            return _match_dump(path, numbers, num_frames, size, settings)
        frames, names = read_pose_frames(path)
        frames = _from_maps(frames) if isinstance(frames, torch.Tensor) else [np.asarray(frame) for frame in frames]
        order = channel_order
        if order == "auto":
            order, notice = find_channel_order(frames)
            notices += [f"{notice}; --channel_order decides."] if notice else []
        frames = [np.ascontiguousarray(frame[..., CHANNEL_ORDERS[order]]) for frame in frames]
        frames = [_resize(frame, size, stretch) for frame in frames]
        frames, unused = _match(names, frames, numbers, num_frames)
        frames = [None if frame is None or not frame[..., 2].any() else frame for frame in frames]  # shows nobody
        frames, filled = fill_gaps(frames, settings.max_gap)
    except ClipDropped:
        raise
    except ValueError as error:
        reason = re.sub("`(frames|path|poses)`", "`iuv_dir`", str(error))
        reasons = [reason, *map(str.capitalize, _name_unused(unused))]
        raise ClipDropped(" ".join(reasons)) from error
    return MatchedPoses(temporal_median(frames, settings.median), filled, notices + _name_unused(unused))


def _match_dump(
    path: str | os.PathLike,
    numbers: Sequence[int] | None,
    num_frames: int,
    size: tuple[int, int],
    settings: PoseSettings,
) -> MatchedPoses:
    entries = [(name, people) for name, people in read_dump(path, settings.max_gap) if name is not None]
    names, detections = [name for name, _ in entries], [people for _, people in entries]
    matched, unused = _match(names, detections, numbers, num_frames)
    width, height = size
    poses = follow_through_clip([people or [] for people in matched], height, width, settings)
    return MatchedPoses(poses, poses.filled, _name_unused(unused))


def _match(
    names: Sequence[str], poses: Sequence[Any], numbers: Sequence[int] | None, num_frames: int
) -> tuple[list[Any | None], list[int]]:
    """Return the pose of each frame, `None` where there is none, and the numbers of the poses that no frame has."""
    pose_numbers = frame_numbers(names) if names else None
    if pose_numbers is None or (not numbers and len(poses) == num_frames):
        if len(poses) != num_frames:
            raise ClipDropped(f"it has {num_frames} frames and {len(poses)} poses, whose names have no numbers.")
        return list(poses), []
    if numbers is None:
        numbers = _count_video_frames(pose_numbers, num_frames)
    elif not numbers:
        raise ClipDropped(f"no number counts its {num_frames} frames, and it has {len(poses)} poses.")
    by_number = dict(zip(pose_numbers, poses))
    unused = sorted(set(by_number) - set(numbers))
    # First and last number differ alike: frames from 1, say, and poses from 0.
    is_shifted = pose_numbers[0] - numbers[0] == pose_numbers[-1] - numbers[-1] != 0
    if len(unused) == len(by_number) or is_shifted:
        ends = f"{numbers[0]} to {numbers[-1]}", f"{min(by_number)} to {max(by_number)}"
        raise ClipDropped(
            f"its {num_frames} frames have the numbers {ends[0]} and its {len(poses)} poses {ends[1]}. A frame and "
            "its pose must have the same number."
        )
    return [by_number.get(number) for number in numbers], unused


def _count_video_frames(pose_numbers: Sequence[int], num_frames: int) -> range:
    """Return the numbers of a video's frames, which start at 0 or 1 like those of the poses."""
    low, high = min(pose_numbers), max(pose_numbers)
    if low == 0:
        return range(num_frames)
    if low == 1 and high == num_frames:
        return range(1, num_frames + 1)
    raise ClipDropped(
        f"its video has {num_frames} frames and its poses have the numbers {low} to {high}, which do not tell whether "
        "its first frame has the number 0 or 1. Give each frame a pose, or number them from 0."
    )


def _name_unused(numbers: Sequence[int]) -> list[str]:
    return [f"poses without a frame, by their numbers: {shorten(numbers)}."] if numbers else []


def _from_maps(maps: torch.Tensor) -> list[np.ndarray]:
    """Turn maps of U and V `[F, 2, H, W]` in [0, 1] without part codes into IUV; all of the body gets part 1."""
    levels = (maps * 255).round().byte().numpy()
    return [np.stack([v, u, ((u > 0) | (v > 0)).astype(np.uint8)], axis=-1) for u, v in levels]


def _resize(frame: np.ndarray, size: tuple[int, int], stretch: bool) -> np.ndarray:
    """Resize IUV to the frames' size by nearest neighbour, which never mixes two body parts."""
    height, width = frame.shape[:2]
    if (width, height) == size:
        return frame
    # Sides may be rounded by half a pixel.
    if not stretch and 2 * abs(width * size[1] - height * size[0]) > max(width, height, *size):
        frames = f"{size[0]}x{size[1]}"
        raise ClipDropped(f"its poses, {width}x{height} pixels, have another proportion than its frames, {frames}.")
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.NEAREST))
