# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Rows of a prepared data set from one clip, one row per frame."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
from PIL import Image

from training.data import frame_pairs
from training.data.clip_frames import ClipFrames
from training.data.row_settings import RowSettings
from training.poses.clip_poses import ClipDropped, estimate_poses
from training.poses.estimator import DensePoseEstimator
from training.poses.matching import MatchedPoses, match_poses


FEATURES = datasets.Features({**frame_pairs.FEATURES, "split": datasets.Value("string")})


@dataclass(frozen=True)
class ClipRows:
    """Rows of a clip, the numbers of the filled frames, and notices about what did not match."""

    rows: list[dict]
    filled: list[int]
    notices: list[str] = field(default_factory=list)


def clip_rows(
    source: str | os.PathLike,
    video_id: str,
    split: str,
    poses: DensePoseEstimator | str | os.PathLike,
    settings: RowSettings = RowSettings(),
    show_progress: bool = True,
) -> ClipRows:
    """Make the rows of one clip, with pictures as JPEG of quality 95 and IUV as PNG.

    Args:
        source (`str` or `os.PathLike`): A video, or a folder with one picture per frame.
        video_id (`str`): Id of the rows.
        split (`str`): Split of the rows.
        poses (`DensePoseEstimator`, `str` or `os.PathLike`): DensePose, or the clip's existing poses.
        settings (`RowSettings`, *optional*): How to make the rows.
        show_progress (`bool`, *optional*, defaults to `True`): Show a bar while DensePose runs.
    Returns:
        `ClipRows`: One row per frame with the columns of `FEATURES`. `frame_index` is the number in a picture's name,
            if names have one, else the frame's place.
    Raises:
        ClipDropped: If no frame shows a person, a gap is too long, or the poses do not fit the frames.
        UnreadablePictures: If a frame cannot be read.
    """
    frames = ClipFrames(source, settings.square_pixels)
    matched = frame_poses(frames, poses, settings, show_progress)
    numbers = frames.numbers or range(len(matched.poses))
    if max(numbers) >= 2**31:  # such as times in microseconds
        numbers = range(len(matched.poses))
    rows = []
    # Decode again instead of keeping all pictures in memory; compared with DensePose this costs little.
    for number, picture, pose in zip(numbers, frames, matched.poses, strict=True):
        if picture.size != pose.shape[1::-1]:  # the poses have the size of the first frame
            sizes = ["x".join(map(str, size)) for size in (frames.size, picture.size)]
            raise ClipDropped(f"its frames must have one size, got {sizes[0]} and, in frame {number}, {sizes[1]}.")
        row = {"video_id": video_id, "frame_index": number, "split": split}
        rows.append(row | encode_frame(picture, Image.fromarray(pose)))
    return ClipRows(rows, [numbers[place] for place in matched.filled], matched.notices)


class _Chosen(Sequence):
    """Items of a sequence at chosen places, read when they are accessed."""

    def __init__(self, items: Sequence, places: Sequence[int]):
        self.items, self.places = items, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int):
        return self.items[self.places[index]]


def frame_poses(
    frames: ClipFrames,
    poses: DensePoseEstimator | str | os.PathLike,
    settings: RowSettings,
    show_progress: bool = True,
) -> MatchedPoses:
    """Return the IUV picture of each frame of a clip; arguments and errors are those of [`clip_rows`]."""
    try:
        places = frames.places(settings.poses.max_gap)
    except ValueError as error:
        raise ClipDropped(str(error)) from error
    if isinstance(poses, (str, os.PathLike)):
        facts = (frames.numbers, len(frames), frames.size, settings.poses, settings.channel_order)
        return match_poses(poses, *facts, stretch=settings.square_pixels is not None)
    followed = estimate_poses(frames.source, poses, settings.poses, show_progress, frames.unsqueeze)
    places = places or range(len(followed))
    filled = [frame for frame, place in enumerate(places) if place in followed.filled]
    return MatchedPoses(_Chosen(followed, places), filled)


def encode_frame(picture: Image.Image, iuv: Image.Image) -> dict[str, dict]:
    """Return the columns `image` and `iuv` of a row as files in memory."""
    # At this level, decoding a PNG takes 60 % of the time of the default level, for a third more bytes.
    return {"image": _encode(picture, "JPEG", quality=95), "iuv": _encode(iuv, "PNG", compress_level=3)}


def _encode(picture: Image.Image, file_format: str, **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}
