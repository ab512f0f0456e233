# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""One clip -> the IUV of one person in every frame, by DensePose."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from training.media.pictures import UnreadablePictures, iterate_pictures
from training.poses.densepose import fill_gaps, steady_median
from training.poses.detections import PERSON_RULES, Detection, follow_person, paste
from training.poses.estimator import DensePoseEstimator


class ClipDropped(ValueError):
    """A clip without a person, or without one for longer than is filled."""


@dataclass(frozen=True)
class PoseSettings:
    """How detections become the poses of one person.

    Args:
        person (`str`, *optional*, defaults to `"largest"`): Whom to follow, one of `detections.PERSON_RULES`.
        max_gap (`int`, *optional*, defaults to 5):
            The longest run of frames without that person that is filled from its neighbours; with 0 none is.
        median (`int`, *optional*, defaults to 0): Radius of the temporal median over U and V; 0 for none.
    Raises:
        ValueError: If one of them is none of these.
    """

    person: str = PERSON_RULES[0]
    max_gap: int = 5
    median: int = 0

    def __post_init__(self):
        if self.person not in PERSON_RULES:
            raise ValueError(f"`person` must be one of {PERSON_RULES}, got {self.person!r}.")
        for name in ("max_gap", "median"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")


@dataclass(frozen=True)
class ClipPoses(Sequence):
    """The IUV of one person, frame by frame: uint8 `[height, width, 3]` as V, U, I, put together when it is asked for.

    `people` holds the person's detection of each frame, `filled` the frames in which it is a neighbour's.
    """

    people: list[Detection]
    filled: list[int]
    height: int
    width: int
    median: int

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        span = range(index - self.median, index + self.median + 1)
        window = [paste(self.people[min(max(i, 0), len(self) - 1)], self.height, self.width) for i in span]
        return steady_median(window)


def follow_through_clip(
    clip: Iterable[Sequence[Detection]], height: int, width: int, settings: PoseSettings
) -> ClipPoses:
    """Follow one person through the detections of a clip.

    Args:
        clip (`Iterable[Sequence[Detection]]`): The detections of each frame.
        height (`int`): Of the frames, in pixels.
        width (`int`): Of the frames, in pixels.
        settings (`PoseSettings`): Whom, and what becomes of gaps and flicker.
    Returns:
        `ClipPoses`: One IUV a frame.
    Raises:
        ClipDropped: If there is no person, or a gap is longer than `settings.max_gap`.
    """
    chosen = follow_person(clip, height, width, settings.person)
    try:
        people, filled = fill_gaps(chosen, settings.max_gap)
    except ValueError as error:
        raise ClipDropped(str(error)) from error
    return ClipPoses(people, filled, height, width, settings.median)


def estimate_poses(
    source: str | os.PathLike, estimator: DensePoseEstimator, settings: PoseSettings, show_progress: bool = True
) -> ClipPoses:
    """Run DensePose on a video or a folder of pictures.

    Args:
        source (`str` or `os.PathLike`): A video, or a folder of pictures of one size.
        estimator (`DensePoseEstimator`): DensePose.
        settings (`PoseSettings`): Whom to follow, and what becomes of gaps and flicker.
        show_progress (`bool`, *optional*, defaults to `True`): A bar over the frames.
    Returns:
        `ClipPoses`: One IUV a frame.
    Raises:
        ClipDropped: If there is no person, or a gap is too long.
        UnreadablePictures: If there are no frames, one cannot be read, or their sizes differ.
    """
    first = next(iterate_pictures(source), None)
    if first is None:
        raise UnreadablePictures(f"`input` must have at least one frame, got {str(source)!r}, which has none.")

    def detect():
        for picture in tqdm(
            iterate_pictures(source), desc="DensePose", unit="frame", leave=False, disable=not show_progress
        ):
            if picture.size != first.size:
                raise UnreadablePictures(
                    f"`input` must have pictures of one size, got {first.size} and {picture.size}."
                )
            yield estimator(picture)

    # One after another, so that only the followed person's part of each frame stays in memory.
    return follow_through_clip(detect(), first.height, first.width, settings)
