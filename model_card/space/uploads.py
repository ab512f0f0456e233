# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Reading what a visitor uploads, within limits that are checked before it is kept in memory."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from PIL import Image

from pipeline_dreampose import align_pose_maps
from training.media.pictures import (
    UnreadablePictures,
    open_picture,
    open_video,
    read_photo,
    video_stream,
    why_unreadable,
)
from training.poses.pose_files import VIDEO_SUFFIXES, read_poses


MAX_BYTES = 20_000_000  # of one file, and of all poses together
MAX_PHOTO_PIXELS = 16_000_000
MAX_FRAMES = 240
MAX_POSE_PIXELS = 64_000_000  # of all frames together, which are held in memory
MAX_ALIGNED_PIXELS = 16_000_000  # the same of aligned poses, which are floats of the photo's size
PICTURE_LIMIT = f"at most {MAX_PHOTO_PIXELS // 10**6} million pixels"
ALIGNED_LIMIT = f"at most {MAX_ALIGNED_PIXELS // 10**6} million pixels times the number of poses"
POSE_LIMIT = (
    f"at most {MAX_FRAMES} frames, {MAX_POSE_PIXELS // 10**6} million pixels and {MAX_BYTES // 10**6} MB in all"
)


def read_upload(
    photo: str | None, poses: Sequence[str] | None, photo_iuv: str | None = None
) -> tuple[Image.Image, list[Image.Image] | torch.Tensor]:
    """Return an uploaded photo and its poses, which are one lossless video, one `.npy` file, or pictures.

    If there is an IUV picture of the photo, the poses are moved and scaled onto the photo's body.

    Raises:
        ValueError: If one is missing, too large, or cannot be read. The message holds no path of this machine.
    """
    if not photo:
        raise ValueError("`photo` must be a picture of the person: drop one on the field of the photo.")
    if not poses:
        raise ValueError("`poses` must be IUV pictures or a lossless IUV video: drop them on the field of the poses.")
    paths = [Path(pose) for pose in poses]
    with TemporaryDirectory(prefix="dreampose-") as folder:
        try:
            picture = _read_photo(Path(photo))
            read = _read_poses(paths, Path(folder))
            return picture, read if not photo_iuv else _align(read, Path(photo_iuv), picture)
        except ValueError as error:
            message = str(error).replace(folder, "the upload")
            for path in map(Path, (photo, *poses, *([photo_iuv] if photo_iuv else []))):
                message = message.replace(str(path), path.name)
            raise ValueError(message) from error


def _align(poses: list[Image.Image] | torch.Tensor, path: Path, photo: Image.Image) -> torch.Tensor:
    """Return the poses as maps, moved and scaled onto the body that an IUV picture of the photo shows."""
    pixels = _measure_picture(path, "photo_iuv") * len(poses)
    _check(pixels <= MAX_ALIGNED_PIXELS, "photo_iuv", ALIGNED_LIMIT, f"{pixels} pixels for {len(poses)} poses")
    with TemporaryDirectory(prefix="dreampose-") as folder:
        shutil.copyfile(path, Path(folder, path.name))
        try:
            (iuv,) = read_poses(folder)
        except ValueError as error:
            message = str(error).replace(folder, "the upload").replace("`poses`", "`photo_iuv`")
            raise ValueError(message) from error
    if iuv.size != photo.size:
        raise ValueError(f"`photo_iuv` must have the size of the photo, {photo.size} pixels, got {iuv.size}.")
    return align_pose_maps(poses, iuv)


def _check(is_valid: bool, name: str, limit: str, got: str) -> None:
    if not is_valid:
        raise ValueError(f"`{name}` must have {limit}, got {got}. Upload less, or make it smaller.")


def _read_photo(path: Path) -> Image.Image:
    _check(os.path.getsize(path) <= MAX_BYTES, "photo", f"at most {MAX_BYTES // 10**6} MB", "more")
    try:
        with open_picture(path) as image:
            _check(image.width * image.height <= MAX_PHOTO_PIXELS, "photo", PICTURE_LIMIT, f"{image.size} pixels")
    except UnreadablePictures as error:
        raise ValueError(
            f"`photo` must be a readable picture (PNG, JPEG or WebP), got {path.name}: {error}."
        ) from error
    return read_photo(path, "photo")


def _read_poses(paths: list[Path], folder: Path) -> list[Image.Image] | torch.Tensor:
    _check(sum(map(os.path.getsize, paths)) <= MAX_BYTES, "poses", POSE_LIMIT, "more bytes")
    _check(len(paths) <= MAX_FRAMES, "poses", POSE_LIMIT, f"{len(paths)} files")
    suffix = paths[0].suffix.lower()
    if len(paths) == 1 and suffix in (".npy", *VIDEO_SUFFIXES):
        frames, pixels = _measure_array(paths[0]) if suffix == ".npy" else _measure_video(paths[0])
        _check(
            frames <= MAX_FRAMES and pixels <= MAX_POSE_PIXELS,
            "poses",
            POSE_LIMIT,
            f"{frames} frames, {pixels} pixels",
        )
        return read_poses(paths[0])
    pixels = 0
    for path in paths:
        if (folder / path.name).exists():
            raise ValueError(f"`poses` must be files with different names, got {path.name} twice.")
        if path.suffix.lower() != ".npy":
            pixels += _measure_picture(path)
        shutil.copyfile(path, folder / path.name)
    _check(pixels <= MAX_POSE_PIXELS, "poses", POSE_LIMIT, f"{pixels} pixels")
    return read_poses(folder)


def _measure_picture(path: Path, name: str = "poses") -> int:
    _check(os.path.getsize(path) <= MAX_BYTES, name, POSE_LIMIT, "more bytes")
    try:
        with open_picture(path) as image:
            return image.width * image.height
    except UnreadablePictures as error:
        raise ValueError(f"`{name}` must be readable IUV pictures, got {path.name}: {error}.") from error


def _measure_array(path: Path) -> tuple[int, int]:
    """Return the number of frames and of pixels by the file's head; what is no array is left to its reader."""
    try:
        shape = np.lib.format.open_memmap(path, mode="r").shape
    except Exception:  # the reader, which bounds an array by its file's size, explains what is wrong
        return 0, 0
    return (shape[0] if shape else 0), int(np.prod(shape, dtype=object)) // 2


def _measure_video(path: Path) -> tuple[int, int]:
    """Return the number of frames and of pixels, up to the first frame that is beyond a limit.

    The frames of a video may be larger than its head says, so they are decoded, one at a time.
    """
    frames = pixels = 0
    try:
        with open_video(path, options={"max_pixels": str(MAX_POSE_PIXELS)}) as container:
            for frame in container.decode(video_stream(container)):
                frames, pixels = frames + 1, pixels + frame.width * frame.height
                if frames > MAX_FRAMES or pixels > MAX_POSE_PIXELS:
                    break
    except (av.error.FFmpegError, UnreadablePictures, OSError) as error:
        reason = why_unreadable(error)
        raise ValueError(f"`poses` must be a readable video, got {path.name}: {reason}.") from error
    return frames, pixels
