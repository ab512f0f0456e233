# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""One clip -> rows of a prepared data set, one a frame."""

import io
import os

import datasets
from PIL import Image

from training.media.pictures import iterate_pictures
from training.poses.clip_poses import PoseSettings, estimate_poses
from training.poses.estimator import DensePoseEstimator


FEATURES = datasets.Features(
    {
        "video_id": datasets.Value("string"),
        "frame_index": datasets.Value("int32"),
        "image": datasets.Image(),
        "iuv": datasets.Image(),
        "split": datasets.Value("string"),
    }
)


def clip_rows(
    video: str | os.PathLike,
    video_id: str,
    split: str,
    estimator: DensePoseEstimator,
    settings: PoseSettings = PoseSettings(),
    show_progress: bool = True,
) -> tuple[list[dict], list[int]]:
    """The rows of one clip: pictures as JPEG of quality 95, IUV as PNG.

    Args:
        video (`str` or `os.PathLike`): The video.
        video_id (`str`): Goes into every row.
        split (`str`): Goes into every row.
        estimator (`DensePoseEstimator`): DensePose.
        settings (`PoseSettings`, *optional*): Whom to follow, and what becomes of gaps and flicker.
        show_progress (`bool`, *optional*, defaults to `True`): A bar over the frames.
    Returns:
        `tuple[list[dict], list[int]]`: One row a frame, with the columns of `FEATURES`; the frames that were filled.
    Raises:
        ClipDropped: If there is no person, or a gap is too long.
        UnreadablePictures: If the video cannot be read.
    """
    poses = estimate_poses(video, estimator, settings, show_progress)
    rows = []
    # Decoded a second time, which costs little beside DensePose, so that not all pictures lie in memory at once.
    for index, (picture, iuv) in enumerate(zip(iterate_pictures(video), poses, strict=True)):
        row = {"video_id": video_id, "frame_index": index, "split": split}
        rows.append(row | encode_frame(picture, Image.fromarray(iuv)))
    return rows, poses.filled


def encode_frame(picture: Image.Image, iuv: Image.Image) -> dict[str, dict]:
    """The columns `image` and `iuv` of a row, as files in memory."""
    # A level at which PNG is decoded in 60 % of the time that its default takes, for a third more bytes.
    return {"image": _encode(picture, "JPEG", quality=95), "iuv": _encode(iuv, "PNG", compress_level=3)}


def _encode(picture: Image.Image, file_format: str, **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}
