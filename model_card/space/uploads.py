# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Reading what a visitor uploads, within limits that are checked before it is kept in memory."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from PIL import Image

from model_card.space.dances import DanceReader
from model_card.space.figures import FPS
from training.media.pictures import (
    UnreadablePictures,
    open_picture,
    open_video,
    read_photo,
    video_stream,
    why_unreadable,
)
from training.media.timing import frame_rate
from training.poses.alignment import align_poses
from training.poses.pose_files import VIDEO_SUFFIXES, read_poses


MAX_BYTES = 20_000_000  # of one file, and of all poses together
MAX_PHOTO_PIXELS = 16_000_000
MAX_FRAMES = 240
MAX_SCANS = 100  # of a JPEG; an ordinary progressive one has about ten
PICTURE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP")  # MPO is a telephone's JPEG with a second picture
MAX_POSE_PIXELS = 64_000_000  # of all frames together, which are held in memory
MAX_ALIGNED_PIXELS = 16_000_000  # the same of aligned pose maps, which are floats of the photo's size
PICTURE_LIMIT = f"at most {MAX_PHOTO_PIXELS // 10**6} million pixels"
POSE_LIMIT = (
    f"at most {MAX_FRAMES} frames, {MAX_POSE_PIXELS // 10**6} million pixels and {MAX_BYTES // 10**6} MB in all"
)


@dataclass(frozen=True)
class Material:
    """What a video is made from. The poses are IUV pictures or pose maps, `fps` of them for a second."""

    photo: Image.Image
    poses: list[Image.Image] | torch.Tensor
    fps: float = FPS


class Upload:
    """Files of a visitor: a photo, its IUV picture if there is one, and poses or a dance.

    The poses are one lossless video, one `.npy` file, or pictures. A dance is an ordinary video, in which the owner's
    DensePose finds the poses. If the photo has an IUV picture, or DensePose finds one, the poses are moved and scaled
    onto the photo's body.

    Raises:
        ValueError: If one is missing, too large, or cannot be read, here or in the methods. The message holds no path
            of this machine.
    """

    def __init__(
        self,
        photo: str | None,
        poses: Sequence[str] | None,
        photo_iuv: str | None = None,
        dance: str | None = None,
        reader: DanceReader | None = None,
    ):
        if not photo:
            raise ValueError("`photo` must be a picture of the person: drop one on the field of the photo.")
        if not poses and not dance:
            other = ", or a dance on its own" if reader else ""
            where = f"drop them on the field of the poses{other}."
            raise ValueError(f"`poses` must be IUV pictures or a lossless IUV video: {where}")
        if poses and dance:
            raise ValueError("`dance` must be given without `poses`, got both: remove one of them.")
        if dance and reader is None:
            raise ValueError("`dance` must be left out, since this page has no DensePose. Give `poses` instead.")
        self._poses, self._iuv = [Path(pose) for pose in poses or ()], Path(photo_iuv) if photo_iuv else None
        self._dance, self._reader = Path(dance) if dance else None, reader
        self._files = photo, *(poses or ()), photo_iuv, dance
        self._found = []
        with self._hiding_paths():
            self.photo = _read_photo(Path(photo))
            if dance:
                _check(os.path.getsize(dance) <= MAX_BYTES, "dance", f"at most {MAX_BYTES // 10**6} MB", "more")

    def find_poses(self) -> Iterator[int]:
        """Find the poses of a dance, and yield how many frames are done after each, so that this can be stopped."""
        if self._dance is not None:
            with self._hiding_paths():
                for detections in self._reader.detect(self._dance, MAX_FRAMES):
                    self._found.append(detections)
                    yield len(self._found)

    def read(self) -> Material:
        """Return the photo and its poses, after all frames of [`find_poses`] if they come from a dance."""
        fps, iuv = FPS, None
        with self._hiding_paths(), TemporaryDirectory(prefix="dreampose-") as folder:
            try:
                if self._iuv is not None:
                    iuv = _read_photo_iuv(self._iuv, self.photo)
                if self._dance is not None:
                    poses, fps = self._reader.follow(self._found), self._reader.frame_rate(self._dance)
                    iuv = iuv or self._reader.find_in_photo(self.photo)
                else:
                    poses = _read_poses(self._poses, Path(folder))
                    fps = frame_rate(self._poses[0]) or FPS if len(self._poses) == 1 else FPS
            except ValueError as error:
                raise ValueError(str(error).replace(folder, "the upload")) from error
            return Material(self.photo, poses if iuv is None else _align(poses, iuv), fps)

    @contextmanager
    def _hiding_paths(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            message = str(error)
            for path in filter(None, self._files):
                message = message.replace(str(path), Path(path).name)
            raise ValueError(message) from error


def _align(poses: list[Image.Image] | torch.Tensor, iuv: Image.Image) -> list[Image.Image] | torch.Tensor:
    """Return the poses moved and scaled onto the body that an IUV picture of the photo shows."""
    pixels = iuv.width * iuv.height * len(poses)
    most = MAX_ALIGNED_PIXELS if isinstance(poses, torch.Tensor) else MAX_POSE_PIXELS
    limit = f"at most {most // 10**6} million pixels times the number of poses"
    _check(pixels <= most, "photo_iuv", limit, f"{pixels} pixels for {len(poses)} poses")
    return align_poses(poses, iuv, "place")


def _read_photo_iuv(path: Path, photo: Image.Image) -> Image.Image:
    """Return the IUV picture of a photo, which has the photo's size."""
    _measure_picture(path, "photo_iuv")
    with TemporaryDirectory(prefix="dreampose-") as folder:
        shutil.copyfile(path, Path(folder, path.name))
        try:
            (iuv,) = read_poses(folder)
        except ValueError as error:
            message = str(error).replace(folder, "the upload").replace("`poses`", "`photo_iuv`")
            raise ValueError(message) from error
    if iuv.size != photo.size:
        raise ValueError(f"`photo_iuv` must have the size of the photo, {photo.size} pixels, got {iuv.size}.")
    return iuv


def _check(is_valid: bool, name: str, limit: str, got: str) -> None:
    if not is_valid:
        raise ValueError(f"`{name}` must have {limit}, got {got}. Upload less, or make it smaller.")


def _measure_picture(
    path: Path, name: str, most: int = MAX_PHOTO_PIXELS, limit: str = PICTURE_LIMIT
) -> tuple[int, int]:
    """Return width and height of a picture that costs little to decode, or raise a `ValueError`."""
    _check(os.path.getsize(path) <= MAX_BYTES, name, f"at most {MAX_BYTES // 10**6} MB", "more")
    try:
        with open_picture(path) as image:
            (width, height), kind = image.size, image.format
    except UnreadablePictures as error:
        rule = f"`{name}` must be a readable picture (PNG, JPEG or WebP)"
        raise ValueError(f"{rule}, got {path.name}: {error}.") from error
    # A tile of a TIFF may be far larger than the picture, and each scan of a JPEG is decoded over the whole of it.
    if kind not in PICTURE_FORMATS:
        raise ValueError(f"`{name}` must be PNG, JPEG or WebP, got {path.name}, which is {kind}.")
    num_scans = path.read_bytes().count(b"\xff\xda") if kind in ("JPEG", "MPO") else 1
    if num_scans > MAX_SCANS:
        raise ValueError(f"`{name}` must be an ordinary JPEG, got {path.name} with {num_scans} scans: save it again.")
    _check(width * height <= most, name, limit, f"{width} x {height} pixels")
    _check(max(width, height) <= 16 * min(width, height), name, "sides of 16 to 1 at most", f"{width} x {height}")
    return width, height


def _read_photo(path: Path) -> Image.Image:
    _measure_picture(path, "photo")
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
            pixels += math.prod(_measure_picture(path, "poses", MAX_POSE_PIXELS, POSE_LIMIT))
        shutil.copyfile(path, folder / path.name)
    _check(pixels <= MAX_POSE_PIXELS, "poses", POSE_LIMIT, f"{pixels} pixels")
    poses = read_poses(folder)  # which fills gaps of the numbers
    _check(len(poses) <= MAX_FRAMES, "poses", POSE_LIMIT, f"{len(poses)} frames with those that fill gaps")
    return poses


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
        with open_video(path) as container:
            stream = video_stream(container)
            stream.codec_context.options = {"max_pixels": str(MAX_POSE_PIXELS)}
            for frame in container.decode(stream):
                frames, pixels = frames + 1, pixels + frame.width * frame.height
                if frames > MAX_FRAMES or pixels > MAX_POSE_PIXELS:
                    break
    except (av.error.FFmpegError, UnreadablePictures, OSError) as error:
        reason = why_unreadable(error)
        raise ValueError(f"`poses` must be a readable video, got {path.name}: {reason}.") from error
    return frames, pixels
