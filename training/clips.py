# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Held-out clips as the evaluation takes them: a photo, the poses of a whole clip, and the true frames to be met."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.data.frame_pairs import group_videos
from training.data.prepared import PROCEDURAL, load_prepared
from training.data.procedural_fashion import ProceduralFashion


QUARTER_TURN = np.pi / 2
WINDOW_RADIUS = 2  # frames on each side of DreamPose's five
CLEAR_ARM_MOVEMENT = np.pi / 5  # an arm this far from where it hangs in the photo


@dataclass(frozen=True)
class Clip:
    """One subject in one motion.

    `frame_indices` says where in `iuv` (all frames of the clip, so that the windows are the true ones) the `targets`
    lie. `layers` (mode L: 0 background, 1 body and tight clothing, 2 loose cloth, 3 loose hair) and `moved` (whether
    the target is a quarter turn or a clear arm movement away from the photo) are known for drawn clips only. The
    counterpart is another subject: its photo, and for drawn clips its looks on this very body in this very motion.
    """

    name: str
    reference: Image.Image
    iuv: list[Image.Image]
    frame_indices: list[int]
    targets: list[Image.Image]
    layers: list[Image.Image] | None = None
    moved: list[bool] | None = None
    other_reference: Image.Image | None = None
    other_targets: list[Image.Image] | None = None
    other_layers: list[Image.Image] | None = None


def load_clips(dataset: str, split: str, num_clips: int, frames_per_clip: int, seed: int = 0) -> list[Clip]:
    """Load the first clips of a split with target frames drawn by `seed`; the photo is a clip's first frame.

    Targets lie in the last three quarters of a clip and, as far as it has enough frames, two before its end, so that
    the poses around them are five different ones.

    Args:
        dataset (`str`): A prepared data set: a folder, a Hub id, `"procedural"` or `"procedural/CONFIG"`.
        split (`str`): Its split.
        num_clips (`int`): How many clips; the split must hold as many, and two at least.
        frames_per_clip (`int`): Target frames a clip; it must hold as many besides its first.
        seed (`int`, *optional*, defaults to 0): Of the choice of target frames.
    Returns:
        `list[Clip]`: `num_clips` clips.
    Raises:
        ValueError: If there is no such data set or it holds fewer clips or frames.
    """
    rows = load_prepared(dataset, split)
    family, _, config_name = dataset.partition("/")
    procedural = family == PROCEDURAL and "layers" in rows.column_names
    videos = group_videos(rows)
    if not 2 <= num_clips <= len(videos):
        raise ValueError(f"`num_clips` must lie within [2, {len(videos)}] for this split, got {num_clips}.")
    chosen = list(videos.items())[: num_clips + 1]  # one more, so that the last clip's counterpart is no repetition
    photos = [rows[frames[0]]["image"].convert("RGB") for _, frames in chosen]
    clips = []
    for index, (video_id, frames) in enumerate(chosen[:num_clips]):
        if not 1 <= frames_per_clip < len(frames):
            raise ValueError(
                f"`frames_per_clip` must lie within [1, {len(frames) - 1}] for {video_id}, got {frames_per_clip}."
            )
        rng = np.random.default_rng([seed, index])
        # A window that runs over the clip's end holds the last pose several times, no motion; and the photo is the
        # first frame: what comes soon after it is hardly another pose.
        stop = max(len(frames) - WINDOW_RADIUS, frames_per_clip + 1)
        start = min(len(frames) // 4 + 1, stop - frames_per_clip)
        targets = sorted(rng.choice(np.arange(start, stop), frames_per_clip, replace=False).tolist())
        other = (index + 1) % len(chosen)
        clip = rows.select(frames)
        facts = _drawn_facts(config_name or "tiny", split, index, other, targets) if procedural else {}
        clips.append(
            Clip(
                name=video_id,
                reference=photos[index],
                iuv=[iuv.convert("RGB") for iuv in clip["iuv"]],
                frame_indices=targets,
                targets=[clip[i]["image"].convert("RGB") for i in targets],
                layers=[clip[i]["layers"] for i in targets] if "layers" in clip.column_names else None,
                other_reference=photos[other],
                **facts,
            )
        )
    return clips


def _drawn_facts(name: str, split: str, index: int, other: int, targets: list[int]) -> dict:
    """What only the drawing knows: another subject in this motion, and how far the targets are from the photo."""
    config = ProceduralFashion(config_name=name).config
    motion = config.motion(split, index)
    frames = config.counterpart(split, other, index)
    arms = np.abs(motion.arm_raise - motion.arm_raise[motion.pre_roll]).max(axis=1)
    turn = np.abs(motion.yaw - motion.yaw[motion.pre_roll])
    moved = (turn >= QUARTER_TURN) | (arms >= CLEAR_ARM_MOVEMENT)
    return {
        "moved": [bool(moved[motion.pre_roll + i]) for i in targets],
        "other_targets": [Image.fromarray(frames[i].image) for i in targets],
        "other_layers": [Image.fromarray(frames[i].layers) for i in targets],
    }
