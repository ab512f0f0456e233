# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Poses of a driving video and of a photo by DensePose, which are kept next to the output."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from pipeline_dreampose import why_not_iuv
from training.engine.messages import naming_arguments, shorten
from training.media.animation import digest, shown_stage
from training.media.outputs import check_output
from training.media.pictures import (
    UnreadablePictures,
    iterate_pictures,
    open_picture,
    open_video,
    why_unreadable,
)
from training.media.settings_file import remove_leftovers
from training.media.sound import check_sound, read_sound
from training.media.timing import (
    FRAME_RATES,
    choose_frames,
    estimate_length,
    frame_rate,
    frame_times,
    steady_frames,
)
from training.poses import alignment
from training.poses.channel_order import NUM_CODES
from training.poses.clip_poses import ClipDropped, ClipPoses, follow_through_clip, iterate_with_gaps
from training.poses.clip_settings import PoseSettings
from training.poses.detection_cache import cache_key, detect_frames, file_digest, read_frame
from training.poses.detections import Detection
from training.poses.estimator import DensePoseEstimator, find_densepose
from training.poses.pose_files import read_poses


logger = logging.getLogger(__name__)

CACHE_NAME = ".dreampose_poses"
_LARGEST = 1280  # pixels of the longer side of poses to align; all frames of a video must fit into the memory


@dataclass(frozen=True)
class ClipPictures(Sequence):
    """Small pictures of the chosen frames of a clip, read from its cache when an item is read."""

    folder: Path
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Image.Image:
        return read_frame(self.folder, self.chosen[index]).picture


class IuvPictures(Sequence):
    """A clip's IUV as pictures, each made when it is read: together they may be larger than the memory."""

    def __init__(self, iuv: Sequence[np.ndarray]):
        self.iuv = iuv

    def __len__(self) -> int:
        return len(self.iuv)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.iuv[index])


class PoseFinder:
    """Finds poses by DensePose and keeps what it found in a folder, for later runs.

    Args:
        densepose (`str` or `os.PathLike`): As in [`find_densepose`].
        device (`str` or `torch.device`): Where DensePose runs.
        folder (`Path`): Folder of the caches. Each has a name that depends on the clip's and the model's content.
        settings (`PoseSettings`): The person to follow, gaps and flicker. The caches do not depend on them.
    """

    def __init__(self, densepose: str | Path, device: str | torch.device, folder: Path, settings: PoseSettings):
        self.path, self.device, self.folder, self.settings = find_densepose(densepose), device, folder, settings
        check_output("output", folder)
        self.model_digest = file_digest(self.path)
        remove_leftovers(folder)

    @cached_property
    def _estimator(self) -> DensePoseEstimator:
        return DensePoseEstimator(self.path, self.device)

    def _detect(self, picture: Image.Image) -> list[Detection]:
        return self._estimator(picture)

    def follow(
        self, source: Path, start: int = 0, end: int | None = None, every: int = 1
    ) -> tuple[ClipPoses, ClipPictures]:
        """Return the poses of one person in the chosen frames of a video or a folder, and these frames as pictures.

        Raises:
            ValueError: If the clip cannot be read, is too short, or does not show the person for more than `max_gap`
                of the chosen frames. The message names the argument `driving`.
        """
        folder = self.folder / cache_key(self.model_digest, file_digest(source))

        def pictures():
            frames = iterate_with_gaps(source, self.settings.max_gap)
            is_main, total = PartialState().is_main_process, end or estimate_length(source)
            yield from tqdm(frames, desc="poses", unit="frame", total=total, leave=False, disable=not is_main)

        with naming_arguments(input="driving", image="driving"), PartialState().main_process_first():
            chosen = detect_frames(folder, pictures, self._detect, start, end, every)
        width, height = read_frame(folder, chosen[0]).size
        with naming_arguments(frames="driving"):
            clip = (read_frame(folder, index).detections for index in chosen)
            return follow_through_clip(clip, height, width, self.settings), ClipPictures(folder, chosen)

    def find_in_photo(self, image: Image.Image) -> Image.Image:
        """Return the IUV picture of one person in a photo. Raise a `ValueError` if the photo shows nobody."""
        folder = self.folder / cache_key(self.model_digest, digest([image]))
        with PartialState().main_process_first():
            detect_frames(folder, lambda: iter([image]), self._detect)
        found = read_frame(folder, 0).detections
        try:
            poses = follow_through_clip([found], image.height, image.width, self.settings)
        except ClipDropped as error:
            raise ValueError(
                "`image` must show a person that `densepose` finds, to align the poses with; it found nobody. Give"
                " `--image_iuv`, or `--align none`."
            ) from error
        return Image.fromarray(poses[0])


def read_photo_iuv(path: Path, image: Image.Image) -> Image.Image:
    """Read the IUV picture of a photo. It may have another size than the photo, in its proportions.

    Raise a `ValueError` that names `image_iuv` if it is no such picture.
    """
    try:
        with open_picture(path) as picture:
            picture.load()
    except UnreadablePictures as error:
        raise ValueError(f"`image_iuv` must be a readable picture, got {shorten(str(path))}: {error}.") from error
    if picture.mode != "RGB" or picture.format == "JPEG":
        got = "JPEG, which mixes U and V across parts" if picture.format == "JPEG" else f"mode {picture.mode}"
        raise ValueError(
            f"`image_iuv` must be a lossless RGB picture (R = V, G = U, B = I), got {got} in {shorten(str(path))}."
        )
    pixels = np.asarray(picture)
    if not 0 < pixels[..., 2].max() < NUM_CODES:
        reason = why_not_iuv(pixels) if pixels[..., 2].max() else "Nobody is in it."
        raise ValueError(
            f"`image_iuv` must hold part codes 1..{NUM_CODES - 1} in its blue channel, got {pixels[..., 2].max()} at"
            f" most in {shorten(str(path))}. {reason}"
        )
    scale = picture.width / image.width
    if abs(picture.height - scale * image.height) > 1 + scale:
        raise ValueError(
            f"`image_iuv` must have the proportions of the photo, {image.width} x {image.height}, got"
            f" {picture.width} x {picture.height}."
        )
    return picture


def _resize(iuv: Image.Image, least: int = 1) -> Image.Image:
    """Resize an IUV picture, if need be, so that its longer side has from `least` to `_LARGEST` pixels."""
    longer = max(iuv.size)
    scale = min(max(longer, least), max(_LARGEST, least)) / longer
    size = [max(1, round(side * scale)) for side in iuv.size]
    return iuv if scale == 1 else iuv.resize(size, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Driver:
    """What drives an animation.

    `poses` are those of the chosen frames, aligned, as the pipeline takes them. `fps` are their frames per second, if
    known. `pictures` are the frames of a video, and `sound` is its sound as [`read_sound`] returns it.
    """

    poses: Sequence[Image.Image] | torch.Tensor
    fps: float | None
    pictures: Sequence[Image.Image] | None = None
    sound: np.ndarray | None = None


class PoseSource:
    """The poses of an animation, from files or from a video, aligned with a photo.

    What can be checked quickly is checked here, before a model is loaded; [`~PoseSource.read`] runs DensePose.

    Args:
        image (`PIL.Image.Image`): The photo.
        folder (`Path`): Where the folder `CACHE_NAME` keeps what DensePose found.
        device (`str` or `torch.device`): Where DensePose runs.
        poses, driving (`Path`): One of them, as in [`read_poses`], or a video or a folder of pictures.
        densepose, image_iuv, align: As in `animate.py`.
        settings (`PoseSettings`): See [`PoseFinder`].
        start, end, every (`int`): See [`choose_frames`].
        sound (`bool`): Read the sound of `driving`, too.
    Raises:
        ValueError: If one of these cannot be read, or the poses are too few for `start` or `end`.
    """

    def __init__(
        self,
        image: Image.Image,
        folder: Path,
        device: str | torch.device,
        poses: Path | None = None,
        driving: Path | None = None,
        densepose: str | None = None,
        image_iuv: Path | None = None,
        align: str = "none",
        settings: PoseSettings = PoseSettings(),
        start: int = 0,
        end: int | None = None,
        every: int = 1,
        sound: bool = False,
    ):
        self.image, self.path, self.align, self.sound = image, driving, align, sound
        self.chosen = start, end, every
        self.image_iuv = None if image_iuv is None else read_photo_iuv(image_iuv, image)
        self.finder = None if densepose is None else PoseFinder(densepose, device, folder / CACHE_NAME, settings)
        self.read_from_files = None
        if driving is None:
            self.read_from_files = _read_pose_files(poses, *self.chosen)
            if align == "body" and isinstance(self.read_from_files.poses, torch.Tensor):
                raise ValueError(
                    "`align` must be place or none for pose maps without part codes, which tell the limbs apart, got"
                    f" 'body' with {shorten(str(poses))}."
                )
        else:
            _check_video(driving, sound)

    def read(self, height: int, width: int) -> Driver:
        """Find the poses, and align them for frames of `height` x `width` pixels."""
        driver = self.read_from_files or self._follow_video()
        if self.align == "none":
            return driver
        with shown_stage("pose of the photo"):
            image_iuv = _resize(self.image_iuv or self.finder.find_in_photo(self.image), max(height, width))
        names = {"mode": "align", "poses": "poses" if self.path is None else "driving", "photo_iuv": "image_iuv"}
        with shown_stage("alignment"), warnings.catch_warnings(record=True) as notices, naming_arguments(**names):
            warnings.simplefilter("always")
            is_map = isinstance(driver.poses, torch.Tensor)
            poses = driver.poses if is_map else [_resize(pose) for pose in driver.poses]
            aligned = alignment.align_poses(poses, image_iuv, self.align)
        for notice in notices if PartialState().is_main_process else ():
            logger.warning(str(notice.message).replace("`photo_iuv`", "`image_iuv`"))
        return replace(driver, poses=aligned)

    def _follow_video(self) -> Driver:
        every, fps = self.chosen[-1], frame_rate(self.path, "driving")
        followed, pictures = self.finder.follow(self.path, *self.chosen)
        if followed.filled:
            logger.warning(
                f"{self.path} has frames without the person, which copy their neighbours' poses: {followed.filled}."
            )
        if self.sound:
            return self._add_sound(followed, pictures, fps or 30)
        return Driver(IuvPictures(followed), fps and max(fps / every, FRAME_RATES[0]), pictures)

    def _add_sound(self, followed: ClipPoses, pictures: ClipPictures, fps: float) -> Driver:
        """Add the sound. Frames at a variable rate are repeated or left out, so that they stay with it."""
        chosen, times = pictures.chosen, frame_times(self.path)
        if len(times) <= chosen[-1]:  # some frames have no time
            times = np.arange(chosen[-1] + 1) / fps
        fps = max(fps / self.chosen[-1], FRAME_RATES[0])
        steady = steady_frames(times[chosen] - times[chosen[0]], fps)
        followed = replace(followed, people=[followed.people[index] for index in steady])
        pictures = replace(pictures, chosen=[chosen[index] for index in steady])
        with _open_sound(self.path) as container:
            sound = read_sound(container, times[chosen[0]], len(steady) / fps)
        return Driver(IuvPictures(followed), fps, pictures, sound)


def _read_pose_files(path: Path, start: int, end: int | None, every: int) -> Driver:
    poses, fps = read_poses(path), frame_rate(path)
    chosen = choose_frames(len(poses), start, end, every)
    return Driver(poses[chosen.start : chosen.stop : every], fps and max(fps / every, FRAME_RATES[0]))


def _check_video(path: Path, with_sound: bool) -> None:
    """Raise a `ValueError` if the first frame of `driving` cannot be read, or it has no sound `with_sound`."""
    with naming_arguments(input="driving"):
        if next(iterate_pictures(path), None) is None:
            raise UnreadablePictures(f"`input` must have at least one frame, got {shorten(str(path))} with none.")
    if with_sound:
        with _open_sound(path):
            pass


@contextmanager
def _open_sound(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a video with sound. Raise a `ValueError` that names `sound` if it has none or cannot be decoded."""
    if path.is_dir():
        raise ValueError(f"`sound` must be given with a video as `driving`, got the folder {shorten(str(path))}.")
    try:
        with open_video(path) as container:
            check_sound(container, "driving", path)
            yield container
    except av.error.FFmpegError as error:
        raise ValueError(
            f"`sound` must be given with a `driving` whose sound can be read, got {shorten(str(path))}:"
            f" {why_unreadable(error)}."
        ) from error
