# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""IUV pictures of one person in every frame of a clip, estimated by DensePose."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from training.media.pictures import UnreadablePictures, iterate_pictures
from training.poses.densepose import fill_gaps, steady_median
from training.poses.detections import Detection, follow_person, paste
from training.poses.estimator import DensePoseEstimator
from training.poses.settings import PoseSettings


class ClipDropped(ValueError):
    """A clip that shows no person, or shows none for more frames than `max_gap`."""


@dataclass(frozen=True)
class ClipPoses(Sequence):
    """IUV pictures of one person: uint8 `[height, width, 3]` as V, U, I, built when an item is read.

    `people` holds the person's detection in each frame. `filled` lists the frames that copy a neighbour's detection.
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
    """Follow one person through the detections of each frame; `height` and `width` are the frames' size in pixels.

    Raises:
        ClipDropped: If no frame shows a person, or a gap is longer than `settings.max_gap`.
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

    Raises:
        ClipDropped: If no frame shows a person, or a gap is longer than `settings.max_gap`.
        UnreadablePictures: If there are no frames, a frame cannot be read, or their sizes differ.
    """
    first = next(iterate_pictures(source), None)
    if first is None:
        raise UnreadablePictures(f"`input` must have at least one frame, got {str(source)!r}, which has none.")

    def detect():
        pictures = iterate_pictures(source)
        for picture in tqdm(pictures, desc="DensePose", unit="frame", leave=False, disable=not show_progress):
            if picture.size != first.size:
                raise UnreadablePictures(
                    f"`input` must have pictures of one size, got {first.size} and {picture.size}."
                )
            yield estimator(picture)

    # A generator, so that only the followed person's detections stay in memory.
    return follow_through_clip(detect(), first.height, first.width, settings)
