# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Reading the DensePose sequence of a clip from files.

IUV is always uint8 `[H, W, 3]`, stored as V, U, I (R, G, B of a picture).
"""

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline_dreampose import why_not_iuv
from training.engine.messages import one_line, shorten
from training.media.pictures import (
    PICTURE_SUFFIXES,
    UnreadablePictures,
    list_files,
    open_picture,
    open_video,
    video_stream,
    why_unreadable,
)
from training.poses.channel_order import NUM_CODES
from training.poses.clip_settings import PoseSettings
from training.poses.gaps import fill_gaps, insert_missing


logger = logging.getLogger(__name__)

LOSSLESS_SUFFIXES = (".png", ".bmp")  # lossless: a JPEG mixes U and V across charts
WEBP_SUFFIX = ".webp"  # lossless or not
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".nut")
RELEASE_PATTERN = "*_densepose.npy"


def read_poses(
    path: str | os.PathLike, max_gap: int = PoseSettings.max_gap, check_order: bool = True
) -> list[Image.Image] | torch.Tensor:
    """Read the poses of a clip from a file or folder. Log a notice of filled frames, and of several people.

    Args:
        path (`str` or `os.PathLike`): One of

            - a folder of IUV pictures (R = V, G = U, B = I) as PNG, BMP or, without such files, as lossless WebP, in
              the order of the numbers in their names;
            - a video of such pictures in a lossless RGB codec (FFV1, PNG, HuffYUV, ...);
            - a `.npy` file of uint8 `[F, H, W, 3]` (IUV pictures) or floats `[F, 2, H, W]` (U, V in `[0, 1]`);
            - a folder of the release's `frame_<n>_densepose.npy`, floats `[2, H, W]` each.
        max_gap (`int`, *optional*, defaults to 5):
            The longest run of numbers missing from a folder that is filled from the nearest frames.
        check_order (`bool`, *optional*, defaults to `True`): Check that the blue channel of pictures holds part codes.
    Returns:
        `list[PIL.Image.Image]` or `torch.Tensor`: The pipeline's `pose_maps`: `F` pictures of one size, or float32
            `[F, 2, H, W]` where the file holds floats.
    Raises:
        ValueError: If `path` does not exist, a frame cannot be read or is not RGB, sizes differ, a video's codec is
            lossy, an array has another shape or range, or more than `max_gap` numbers in a row are missing.
    """
    poses, names = read_pose_frames(path)
    if names:
        indices, filled = fill_gaps(insert_missing(names, range(len(names)), max_gap, source=path), max_gap)
        if filled:
            logger.warning(f"{path} leaves out frames, which copy their neighbours: {filled}.")
        poses = poses[indices] if isinstance(poses, torch.Tensor) else [poses[index] for index in indices]
    if isinstance(poses, torch.Tensor):
        return poses
    for index, frame in enumerate(map(np.asarray, poses) if check_order else ()):
        if frame[..., 2].max() >= NUM_CODES:
            raise ValueError(
                f"`poses` must hold part codes 0..{NUM_CODES - 1} in the blue channel, got {frame[..., 2].max()} in "
                f"frame {index}. {why_not_iuv(frame)}"
            )
    if show_several_people(poses):
        logger.warning(
            f"{path} shows several people in a frame, and all of them act as one. training/extract_poses.py "
            "--densepose follows one person."
        )
    return poses


def read_pose_frames(path: str | os.PathLike) -> tuple[list[Image.Image] | torch.Tensor, list[str]]:
    """Read the frames that a file or folder of [`read_poses`] holds, and the names of a folder's files.

    No frame is filled, and the channel order is not checked. A file has no names, so its list is empty.

    Raises:
        ValueError: As [`read_poses`] does.
    """
    path = Path(path)
    is_file = os.path.isfile(path)  # a `Path` would raise an error for a name that is too long
    if is_file and path.suffix.lower() == ".npy":
        return _read_stack(path), []
    if is_file and path.suffix.lower() in VIDEO_SUFFIXES:
        return _read_video(path), []
    if os.path.isdir(path):
        return _read_folder(path)
    raise ValueError(
        "`poses` must be a folder of IUV pictures, a lossless video or a .npy file, "
        f"got {shorten(str(path))}{'' if os.path.exists(path) else ', which does not exist'}."
    )


def _read_folder(folder: Path) -> tuple[list[Image.Image] | torch.Tensor, list[str]]:
    # The original release stores its maps next to the clip's frames, so maps take precedence over pictures.
    maps = [file for file in list_files(folder, [".npy"]) if file.match(RELEASE_PATTERN)]
    pictures = list_files(folder, LOSSLESS_SUFFIXES) or list_files(folder, [WEBP_SUFFIX])
    if not maps and not pictures:
        is_lossy = bool(list_files(folder, PICTURE_SUFFIXES))
        raise ValueError(
            f"`poses` must hold IUV pictures (PNG, BMP, lossless WebP) or {RELEASE_PATTERN}, got "
            f"{str(folder)!r}, {'with lossy pictures, which mix U and V across parts' if is_lossy else 'without any'}."
        )
    return (_read_release_maps(maps) if maps else _read_pictures(pictures)), [file.name for file in maps or pictures]


def _read_pictures(files: Sequence[Path]) -> list[Image.Image]:
    frames = []
    for file in files:
        try:
            with open_picture(file) as image:
                image.load()
        except UnreadablePictures as error:
            raise ValueError(f"`poses` must be readable pictures, got {str(file)!r}: {error}.") from error
        lossy = {"AVIF": "AVIF", "JPEG": "JPEG", "WEBP": "lossy or animated WebP"}.get(image.format)
        if lossy and not (image.format == "WEBP" and _is_lossless_webp(file)):
            raise ValueError(
                f"`poses` must be lossless pictures, since others mix U and V across parts; got {lossy} in "
                f"{str(file)!r}."
            )
        if image.mode != "RGB":
            raise ValueError(
                f"`poses` must be RGB pictures (R = V, G = U, B = I), got mode {image.mode} in {str(file)!r}."
            )
        _check_size(file.name, image.size, files[0].name, frames[0].size if frames else image.size)
        frames.append(image)
    return frames


def _is_lossless_webp(path: Path) -> bool:
    """Return whether the picture in a WebP file, a list of named chunks, is lossless: `VP8L` instead of `VP8 `."""
    with open(path, "rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _check_size(name: str, size: tuple[int, ...], first_name: str, first_size: tuple[int, ...]) -> None:
    if size != first_size:
        raise ValueError(
            f"`poses` must have one size, got {tuple(first_size)} in {first_name!r} and {tuple(size)} in {name!r}."
        )


def _read_video(path: Path) -> list[Image.Image]:
    try:
        with open_video(path) as container:
            stream = video_stream(container)
            codec, pixel_format = stream.codec_context.codec, stream.codec_context.format
            frames = (frame.to_image() for frame in container.decode(stream))
            if not codec.lossless or codec.lossy or not pixel_format.is_rgb:
                reason = "".join(f" {why_not_iuv(np.asarray(frame))}" for frame in itertools.islice(frames, 1))
                raise ValueError(
                    "`poses` must be a video in a lossless RGB codec (`ffmpeg ... -c:v ffv1 -pix_fmt bgr0`), since "
                    f"others mix U and V across parts; got {codec.name}, {pixel_format.name} in {str(path)!r}."
                    f"{reason} Make poses from an ordinary video with training/extract_poses.py --densepose."
                )
            frames = list(frames)
    except (av.error.FFmpegError, OSError, UnreadablePictures) as error:
        reason = why_unreadable(error)
        raise ValueError(f"`poses` must be a readable video, got {str(path)!r}: {reason}.") from error
    if not frames:
        raise ValueError(f"`poses` must have at least one frame, got {str(path)!r}, which has none.")
    return frames


def _load_array(path: Path) -> np.ndarray:
    try:
        # A memory map compares the declared shape with the file's size before any memory is taken.
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, OSError, MemoryError, OverflowError, RecursionError, TypeError) as error:
        reason = one_line(why_unreadable(error), 200)
        raise ValueError(f"`poses` must be a plain numpy array (.npy), got {str(path)!r}: {reason}.") from error


def _is_map(array: np.ndarray) -> bool:
    """Check that an array `[..., 2, H, W]` holds floats within [0, 1]; every comparison with NaN is false."""
    return array.dtype.kind == "f" and array.size > 0 and array.shape[-3] == 2 and 0 <= array.min() <= array.max() <= 1


def _read_stack(path: Path) -> list[Image.Image] | torch.Tensor:
    stack = _load_array(path)
    if stack.ndim == 4 and stack.size:
        if stack.dtype == np.uint8 and stack.shape[3] == 3:
            return [Image.fromarray(frame) for frame in stack]
        if _is_map(stack):
            return torch.from_numpy(stack.astype(np.float32))
    raise ValueError(
        "`poses` must be uint8 [F, H, W, 3] or floats [F, 2, H, W] within [0, 1], got "
        f"{stack.dtype} {list(stack.shape)} in {str(path)!r}."
    )


def _read_release_maps(files: list[Path]) -> torch.Tensor:
    maps = []
    for file in files:
        array = _load_array(file)
        if array.ndim != 3 or not _is_map(array):
            raise ValueError(
                f"`poses` must be floats [2, H, W] within [0, 1], got {array.dtype} {list(array.shape)} "
                f"in {str(file)!r}."
            )
        _check_size(file.name, array.shape, files[0].name, maps[0].shape if maps else array.shape)
        maps.append(torch.from_numpy(array.astype(np.float32)))
    return torch.stack(maps)


_HEAD_CODES = (23, 24)


def show_several_people(frames: Sequence[Image.Image]) -> bool:
    """Check that most of eight frames show two heads apart. The smaller one has at least a quarter of the area."""
    indices = np.unique(np.linspace(0, len(frames) - 1, 8).astype(int))
    return np.median([_count_heads(np.asarray(frames[i])) for i in indices]) > 1


def _count_heads(frame: np.ndarray) -> int:
    channel = next((c for c in (2, 0) if frame[..., c].max() < NUM_CODES), None)
    if channel is None:
        return 0
    mask = torch.from_numpy(np.isin(frame[..., channel], _HEAD_CODES)).float()[None]
    mask = F.adaptive_max_pool2d(mask, [min(side, 96) for side in frame.shape[:2]])
    areas = []
    while mask.any():
        # Let one pixel grow within the mask until it fills its head.
        head, area = torch.zeros_like(mask), 0
        head.view(-1)[mask.argmax()] = 1
        while head.sum() > area:
            area = int(head.sum())
            head = F.max_pool2d(head, 3, 1, 1) * mask
        mask = mask - head
        areas.append(area)
    return sum(4 * area >= max(areas) for area in areas)
