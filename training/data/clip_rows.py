# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""One clip -> the IUV of one person in every frame -> rows of a prepared data set, one a frame."""

import io
import os
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from training.data.densepose import fill_gaps, temporal_median
from training.data.detections import PERSON_RULES, Detection, follow_person, paste
from training.data.estimator import DensePoseEstimator
from training.pictures import iterate_pictures


FEATURES = datasets.Features(
    {
        "video_id": datasets.Value("string"),
        "frame_index": datasets.Value("int32"),
        "image": datasets.Image(),
        "iuv": datasets.Image(),
        "split": datasets.Value("string"),
    }
)


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


def detections_to_iuv(
    clip: list[list[Detection]], height: int, width: int, settings: PoseSettings
) -> tuple[list[np.ndarray], list[int]]:
    """Follow one person through the detections of a clip.

    Args:
        clip (`list[list[Detection]]`): The detections of each frame.
        height (`int`): Of the frames, in pixels.
        width (`int`): Of the frames, in pixels.
        settings (`PoseSettings`): Whom, and what becomes of gaps and flicker.
    Returns:
        `tuple[list[np.ndarray], list[int]]`: IUV, uint8 `[height, width, 3]` a frame, and which frames were filled.
    Raises:
        ClipDropped: If there is no person, or a gap is longer than `settings.max_gap`.
    """
    chosen = follow_person(clip, height, width, settings.person)
    frames = [None if detection is None else paste(detection, height, width) for detection in chosen]
    try:
        frames, filled = fill_gaps(frames, settings.max_gap)
    except ValueError as error:
        raise ClipDropped(str(error)) from error
    return (temporal_median(frames, settings.median) if settings.median else frames), filled


def estimate_iuv(
    source: str | os.PathLike, estimator: DensePoseEstimator, settings: PoseSettings
) -> tuple[list[np.ndarray], list[int]]:
    """Run DensePose on a video or a folder of pictures; the rest is `detections_to_iuv`.

    Args:
        source (`str` or `os.PathLike`): A video, or a folder of pictures of one size.
        estimator (`DensePoseEstimator`): DensePose.
        settings (`PoseSettings`): As in `detections_to_iuv`, with its results and errors.
    Returns:
        `tuple[list[np.ndarray], list[int]]`: IUV of each frame, and which frames were filled.
    Raises:
        ValueError: If there are no frames, one cannot be read, or their sizes differ.
    """
    clip, size = [], None
    for picture in tqdm(iterate_pictures(source), desc="DensePose", unit="frame", leave=False):
        size = size or picture.size
        if picture.size != size:
            raise ValueError(f"`input` must have pictures of one size, got {size} and {picture.size}.")
        clip.append(estimator(picture))
    if size is None:
        raise ValueError(f"`input` must have at least one frame, got {str(source)!r}, which has none.")
    return detections_to_iuv(clip, size[1], size[0], settings)


def clip_rows(
    video: str | os.PathLike,
    video_id: str,
    split: str,
    estimator: DensePoseEstimator,
    settings: PoseSettings = PoseSettings(),
    filled: list[int] | None = None,
) -> list[dict]:
    """The rows of one clip: pictures as JPEG of quality 95, IUV as PNG.

    Args:
        video (`str` or `os.PathLike`): The video.
        video_id (`str`): Goes into every row.
        split (`str`): Goes into every row.
        estimator (`DensePoseEstimator`): DensePose.
        settings (`PoseSettings`, *optional*): Whom to follow, and what becomes of gaps and flicker.
        filled (`list[int]`, *optional*): Receives the frames that were filled.
    Returns:
        `list[dict]`: One a frame, with the columns of `FEATURES`.
    Raises:
        ClipDropped: If there is no person, or a gap is too long.
        ValueError: If the video cannot be read.
    """
    frames, gaps = estimate_iuv(video, estimator, settings)
    if filled is not None:
        filled.extend(gaps)
    rows = []
    # Decoded a second time, which costs little beside DensePose, so that not all pictures lie in memory at once.
    for index, (picture, iuv) in enumerate(zip(iterate_pictures(video), frames, strict=True)):
        row = {"video_id": video_id, "frame_index": index, "split": split}
        row |= {"image": _encode(picture, "JPEG", quality=95), "iuv": _encode(Image.fromarray(iuv), "PNG")}
        rows.append(row)
    return rows


def _encode(picture: Image.Image, file_format: str, **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}
