# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""DensePose sequences from files: IUV pictures, a lossless IUV video, a `.npy` stack, the release's `.npy` folder."""

import os
import re
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError


PICTURE_SUFFIXES = (".png", ".bmp")  # lossless: a JPEG mixes U and V across charts
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".nut")
RELEASE_PATTERN = "*_densepose.npy"


def read_poses(path: str | os.PathLike) -> list[Image.Image] | torch.Tensor:
    """Read the poses of a clip, whatever they lie in.

    Args:
        path (`str` or `os.PathLike`): One of

            - a folder of IUV pictures (R = V, G = U, B = I), in the order of the numbers in their names;
            - a video of such pictures in a lossless RGB codec (FFV1, PNG, HuffYUV, ...);
            - a `.npy` file of uint8 `[F, H, W, 3]` (IUV pictures) or floats `[F, 2, H, W]` (U, V in `[0, 1]`);
            - a folder of the release's `frame_<n>_densepose.npy`, floats `[2, H, W]` each.
    Returns:
        `list[PIL.Image.Image]` or `torch.Tensor`: `F` pictures of one size, or for floats `[F, 2, H, W]`, float32:
            what the pipeline takes as `pose_maps`.
    Raises:
        ValueError: If there is nothing at `path`, a frame cannot be read or is not RGB, sizes differ, a video has lost
            what its codec dropped, or an array has another shape or range.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".npy":
        return _read_stack(path)
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return _read_video(path)
    if not path.is_dir():
        raise ValueError(
            "`poses` must be a folder of IUV pictures, a lossless video or a .npy file, "
            f"got {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    # The release keeps its maps among the frames of the clip that they were taken from, so the maps come first.
    maps = sorted(path.glob(RELEASE_PATTERN), key=_natural_order)
    return _read_release_maps(maps) if maps else _read_pictures(path)


def _natural_order(file: Path) -> tuple[list, str]:
    """`frame_2` before `frame_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", file.stem)], file.name


def _read_pictures(folder: Path) -> list[Image.Image]:
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=_natural_order)
    if not files:
        raise ValueError(
            f"`poses` must hold IUV pictures ({', '.join(PICTURE_SUFFIXES)}) or {RELEASE_PATTERN}, "
            f"got {str(folder)!r}, without any."
        )
    frames = []
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"`poses` must be readable pictures, got {str(file)!r}: {error}.") from error
        if image.mode != "RGB":
            raise ValueError(
                f"`poses` must be RGB pictures (R = V, G = U, B = I), got mode {image.mode} in {str(file)!r}."
            )
        _check_size(file.name, image.size, files[0].name, frames[0].size if frames else image.size)
        frames.append(image)
    return frames


def _check_size(name: str, size: tuple[int, ...], first_name: str, first_size: tuple[int, ...]) -> None:
    if size != first_size:
        raise ValueError(
            f"`poses` must have one size, got {tuple(first_size)} in {first_name!r} and {tuple(size)} in {name!r}."
        )


def _read_video(path: Path) -> list[Image.Image]:
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ValueError(f"`poses` must be a video with pictures, got {str(path)!r}, which has none.")
            stream = container.streams.video[0]
            codec, pixel_format = stream.codec_context.codec, stream.codec_context.format
            if not codec.lossless or codec.lossy or not pixel_format.is_rgb:
                raise ValueError(
                    "`poses` must be a video in a lossless RGB codec (`ffmpeg ... -c:v ffv1 -pix_fmt bgr0`), since "
                    f"others mix U and V across parts; got {codec.name}, {pixel_format.name} in {str(path)!r}."
                )
            frames = [frame.to_image() for frame in container.decode(stream)]
    except av.error.FFmpegError as error:
        raise ValueError(f"`poses` must be a readable video, got {str(path)!r}: {error}.") from error
    if not frames:
        raise ValueError(f"`poses` must have at least one frame, got {str(path)!r}, which has none.")
    return frames


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"`poses` must be a plain numpy array, got {str(path)!r}: {error}.") from error


def _is_map(array: np.ndarray) -> bool:
    """Whether floats `[..., 2, H, W]` are U and V; not so for NaN, which compares with nothing."""
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
