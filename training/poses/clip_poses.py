# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""IUV pictures of one person in every frame of a clip, estimated by DensePose."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from training.media.pictures import MAX_PIXELS, PICTURE_SUFFIXES, UnreadablePictures, iterate_pictures, list_files
from training.poses.clip_settings import PoseSettings
from training.poses.detections import Detection, follow_person, paste, read_dump
from training.poses.estimator import DensePoseEstimator
from training.poses.flicker import steady_median
from training.poses.gaps import fill_gaps, insert_missing


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


def read_dumped_poses(path: str | os.PathLike, height: int, width: int, settings: PoseSettings) -> ClipPoses:
    """Read one person's poses from a detectron2 dump of pictures of `height` x `width` pixels.

    Raises:
        ClipDropped: If no frame shows a person, or a gap is longer than `settings.max_gap`.
        ValueError: As in [`read_dump`], or if the size is too small for the people or larger than a picture may be.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(f"`size` must have up to {MAX_PIXELS} pixels, got {[height, width]}.")
    clip = [detections for _, detections in read_dump(path, settings.max_gap)]
    ends = np.array([detection.box[2:] for detections in clip for detection in detections]).reshape(-1, 2)
    if len(ends) and (ends.max(axis=0) > (width + 2, height + 2)).any():
        reach = ends.max(axis=0)[::-1].tolist()
        raise ValueError(
            f"`size` must be at least {reach}, since people in the dump reach that far, got {[height, width]}."
        )
    return follow_through_clip(clip, height, width, settings)


def estimate_poses(
    source: str | os.PathLike,
    estimator: DensePoseEstimator,
    settings: PoseSettings,
    show_progress: bool = True,
    unsqueeze: Callable[[Image.Image], Image.Image] = lambda picture: picture,
) -> ClipPoses:
    """Run DensePose on a video or a folder of pictures. A number that the pictures' names leave out shows nobody.

    DensePose sees what `unsqueeze` makes of each picture.

    Raises:
        ClipDropped: If no frame shows a person, or a gap is longer than `settings.max_gap`.
        UnreadablePictures: If there are no frames, a frame cannot be read, or their sizes differ.
        ValueError: If more than `settings.max_gap` numbers in a row are missing.
    """
    first = next(map(unsqueeze, iterate_pictures(source)), None)
    if first is None:
        raise UnreadablePictures(f"`input` must have at least one frame, got {str(source)!r}, which has none.")

    def detect():
        pictures = iterate_with_gaps(source, settings.max_gap)
        for picture in tqdm(pictures, desc="DensePose", unit="frame", leave=False, disable=not show_progress):
            if picture is None:
                yield []
                continue
            picture = unsqueeze(picture)
            if picture.size != first.size:
                raise UnreadablePictures(
                    f"`input` must have pictures of one size, got {first.size} and {picture.size}."
                )
            yield estimator(picture)

    # A generator, so that only the followed person's detections stay in memory.
    return follow_through_clip(detect(), first.height, first.width, settings)


def iterate_with_gaps(source: str | os.PathLike, max_gap: int) -> Iterator[Image.Image | None]:
    """Yield the frames of a video or a folder of pictures, and `None` for a number that the pictures' names leave out.

    Raises:
        UnreadablePictures: If there are no pictures, or one cannot be read.
        ValueError: If more than `max_gap` numbers in a row are missing.
    """
    pictures = iterate_pictures(source)
    if not Path(source).is_dir():
        yield from pictures
        return
    files = list_files(Path(source), PICTURE_SUFFIXES)
    for file in insert_missing([file.name for file in files], files, max_gap, argument="input", source=source):
        yield None if file is None else next(pictures)
