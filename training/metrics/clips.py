# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Held-out clips of an evaluation: a photo, the poses of a whole clip, and the true frames to predict."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import datasets
import numpy as np
from accelerate import PartialState
from PIL import Image

from training.data.frame_pairs import group_videos
from training.data.procedural_fashion import ProceduralFashion
from training.data.random_crops import read_labels, read_levels, shown_box
from training.data.samples import PROCEDURAL, load_prepared
from training.engine.errors import naming_data_set
from training.media.pictures import to_pictures
from training.metrics.counts import FEWEST_CONSECUTIVE, reduce_counts
from training.metrics.warping import SurfaceMatch, match_surface


logger = logging.getLogger(__name__)

QUARTER_TURN = np.pi / 2
WINDOW_RADIUS = 2  # frames on each side in DreamPose's window of five
CLEAR_ARM_MOVEMENT = np.pi / 5  # angle of an arm from its position in the photo
KEPT_POSES = 64  # cached per clip; an evaluation reads fewer, those around its targets, several times


@dataclass(frozen=True)
class Clip:
    """One subject in one motion, and a photo of that subject, `reference`, by default the first frame.

    `iuv` has all frames of the clip, so that pose windows are complete. `frame_indices` are the positions of the
    `targets` in it, `run_indices` those of the consecutive `run_targets`. Only drawn clips have `layers` and
    `run_layers` (mode L: 0 background, 1 body and tight clothing, 2 loose cloth, 3 loose hair) and `moved` (whether a
    target is a quarter turn or a clear arm movement away from the photo). The counterpart, `other_*`, is another
    subject: its photo and, for drawn clips, its clothes and hair on this body in this motion. `photo_poses` holds the
    photo's IUV, which is read at its first use; by default it is the first of `iuv`.
    """

    name: str
    reference: Image.Image
    iuv: Sequence[Image.Image]
    frame_indices: list[int]
    targets: list[Image.Image]
    layers: list[Image.Image] | None = None
    moved: list[bool] | None = None
    other_reference: Image.Image | None = None
    other_targets: list[Image.Image] | None = None
    other_layers: list[Image.Image] | None = None
    run_indices: Sequence[int] = ()
    run_targets: Sequence[Image.Image] = ()
    run_layers: Sequence[Image.Image] | None = None
    photo_poses: Sequence[Image.Image] | None = None
    _matches: dict[int, SurfaceMatch] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def photo_iuv(self) -> Image.Image:
        """The photo's IUV picture."""
        return (self.photo_poses or self.iuv)[0]

    def match(self, index: int) -> SurfaceMatch:
        """Find where the photo shows the body of frame `index`; the result is cached."""
        if index not in self._matches:
            self._matches[index] = match_surface(self.iuv[index], self.photo_iuv)
        return self._matches[index]


def _read_row(rows: datasets.Dataset, row: int) -> dict:
    """Read a row with its pictures decoded; if that fails, raise a `ValueError` that names the frame."""
    try:
        return rows[row]
    except (OSError, ValueError) as error:
        names = rows.select_columns(["frame_index", "video_id"])[row]
        raise ValueError(
            f"`dataset` must hold readable pictures, got frame {names['frame_index']} of video"
            f" {names['video_id']!r}: {error}."
        ) from error


class ClipPoses(Sequence[Image.Image]):
    """IUV pictures of a clip, each read at its first use; the last `KEPT_POSES` stay in memory.

    `frames` are the clip's row numbers among `rows`; [`load_clips`] describes `size`.
    """

    def __init__(self, rows: datasets.Dataset, frames: Sequence[int], size: tuple[int, int] | None = None):
        self.frames, column = frames, rows.select_columns(["iuv", "frame_index", "video_id"])

        @lru_cache(maxsize=KEPT_POSES)
        def read(row: int) -> Image.Image:
            return fit_labels(_read_row(column, row)["iuv"].convert("RGB"), size)

        self._read = read

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Image.Image:
        return self._read(self.frames[index])


@dataclass(frozen=True)
class Clips(Sequence[Clip]):
    """The first clips of a split, as [`load_clips`] returns them; each clip is read when it is indexed.

    Reading raises a `ValueError` if the poses or layers of a frame have another size than its picture. `rows` is the
    split with one row per frame. `videos` has the name of each clip and the row numbers of its frames, and one more
    clip if there is one: the last one's counterpart. `photos` has the rows of the photos, and the row number of each
    clip's photo in the order of `videos`. `config_name` is that of `ProceduralFashion` for drawn clips.
    """

    rows: datasets.Dataset
    split: str
    videos: list[tuple[str, list[int]]]
    photos: tuple[datasets.Dataset, list[int]]
    num_clips: int
    frames_per_clip: int
    num_consecutive: int
    seed: int
    config_name: str | None
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name, frames = self.videos[index]
        targets = draw_targets(len(frames), self.frames_per_clip, np.random.default_rng([self.seed, index]))
        run = draw_run(len(frames), self.num_consecutive, np.random.default_rng([self.seed, index, 1]))
        other = (index + 1) % len(self.videos)
        pictures, layers = self._read(self.rows, [frames[i] for i in targets])
        run_pictures, run_layers = self._read(self.rows, [frames[i] for i in run])
        photos, photo_rows = self.photos
        (reference, *others), _ = self._read(photos, [photo_rows[i] for i in dict.fromkeys([index, other])])
        facts = {} if self.config_name is None else self._drawn_facts(index, other, targets)
        return Clip(
            name=name,
            reference=reference,
            photo_poses=ClipPoses(photos, [photo_rows[index]], self.size),
            iuv=ClipPoses(self.rows, frames, self.size),
            frame_indices=targets,
            targets=pictures,
            layers=layers,
            other_reference=others[0] if others else None,
            run_indices=run,
            run_targets=run_pictures,
            run_layers=run_layers,
            **facts,
        )

    def _read(
        self, rows: datasets.Dataset, frames: Sequence[int]
    ) -> tuple[list[Image.Image], list[Image.Image] | None]:
        """Read the pictures of some rows and, if the split has them, the layers."""
        names = ("image", "iuv", "layers", "frame_index", "video_id")
        columns = rows.select_columns([name for name in names if name in rows.column_names])
        read = [_read_row(columns, row) for row in frames]
        for frame in read:
            sizes = {name: frame[name].size for name in ("image", "iuv", "layers") if name in frame}
            if len(set(sizes.values())) > 1:
                raise ValueError(
                    f"`dataset` must hold pictures of one size for each frame, got {sizes} in frame"
                    f" {frame['frame_index']} of video {frame['video_id']!r}."
                )
        pictures = [fit_picture(frame["image"], self.size) for frame in read]
        has_layers = "layers" in columns.column_names
        return pictures, [fit_labels(frame["layers"], self.size) for frame in read] if has_layers else None

    def _drawn_facts(self, index: int, other: int, targets: list[int]) -> dict:
        """Return the facts known of drawn clips only: another subject in this motion, and which targets moved."""
        config = ProceduralFashion(config_name=self.config_name).config
        motion = config.motion(self.split, index)
        frames = config.counterpart(self.split, other, index, targets)
        arms = np.abs(motion.arm_raise - motion.arm_raise[motion.pre_roll]).max(axis=1)
        turn = np.abs(motion.yaw - motion.yaw[motion.pre_roll])
        moved = (turn >= QUARTER_TURN) | (arms >= CLEAR_ARM_MOVEMENT)
        return {
            "moved": [bool(moved[motion.pre_roll + i]) for i in targets],
            "other_targets": [fit_picture(Image.fromarray(frame.image), self.size) for frame in frames],
            "other_layers": [fit_labels(Image.fromarray(frame.layers), self.size) for frame in frames],
        }


def fit_picture(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Fit a picture of any mode into a canvas as the trainer does: whole, its borders continued, mode RGB.

    `size` is the canvas's width and height, by default the picture's own.
    """
    canvas = size or picture.size
    return to_pictures(read_levels(picture, shown_box(picture.size, canvas), canvas)[None])[0]


def fit_labels(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Fit an 8-bit IUV picture, or layers, at the place where [`fit_picture`] puts the picture.

    Values are not mixed, and the pixels around it are 0. `size` is the same as there.
    """
    canvas = size or picture.size
    return read_labels(picture, shown_box(picture.size, canvas), canvas)


def load_clips(
    dataset: str,
    split: str,
    num_clips: int,
    frames_per_clip: int,
    seed: int = 0,
    num_consecutive: int = 0,
    size: tuple[int, int] | None = None,
    photo_split: str | None = None,
) -> Clips:
    """Load the first clips of a split with randomly drawn target frames; the photo is a clip's first frame.

    Targets lie in the last three quarters of a clip. If the clip has enough frames, they end two frames before its
    end, so that the window around each holds five different poses.

    Args:
        dataset, split (`str`): A prepared data set and its split, see [`load_prepared`].
        num_clips (`int`): Number of clips, at least 1 and at most those of the split. A split of one clip has no
            other subject, so its clip has no counterpart.
        frames_per_clip (`int`): Target frames per clip, at least 1 and fewer than the clip's frames. An [`UpTo`] here,
            in `num_clips` or in `num_consecutive` is reduced to what there is, which a notice tells.
        seed (`int`, *optional*, defaults to 0): Seed for the choice of frames.
        num_consecutive (`int`, *optional*, defaults to 0): Consecutive frames per clip, drawn independently of the
            targets: 0, or at least 3 and fewer than the clip's frames.
        size (`tuple[int, int]`, *optional*): Width and height that frames are fitted to, as the trainer fits them.
            Frames of that size stay as they are, and all frames do if it is `None`.
        photo_split (`str`, *optional*): Split whose first frame of each clip is the photo; `split` by default. It is
            for splits that hold the end of a clip whose beginning is in another split.
    Raises:
        ValueError: If there is no such data set or it holds fewer clips or frames.
    """
    with naming_data_set("dataset"):
        rows = load_prepared(dataset, split, hint="Or choose another: `--split NAME`.")
        photos = rows if photo_split in (None, split) else load_prepared(dataset, photo_split)
    family, _, config_name = dataset.partition("/")
    is_drawn = family == PROCEDURAL and "layers" in rows.column_names
    videos = group_videos(rows)
    lengths = [len(frames) for frames in videos.values()]
    counts, notice = reduce_counts(lengths, (num_clips, frames_per_clip, num_consecutive))
    num_clips, frames_per_clip, num_consecutive = counts
    if notice and PartialState().is_main_process:
        logger.warning(notice)
    if not 1 <= num_clips <= len(videos):
        raise ValueError(f"`num_clips` must lie within [1, {len(videos)}] for this split, got {num_clips}.")
    chosen = list(videos.items())[: num_clips + 1]  # one more, so that every clip has its own counterpart
    for video_id, frames in chosen[:num_clips]:
        longest = len(frames) - 1
        if not 1 <= frames_per_clip <= longest:
            raise ValueError(
                f"`frames_per_clip` must lie within [1, {longest}] for {video_id}, got {frames_per_clip}."
            )
        if num_consecutive and not FEWEST_CONSECUTIVE <= num_consecutive <= longest:
            raise ValueError(
                f"`num_consecutive` must be 0 or lie within [{FEWEST_CONSECUTIVE}, {longest}] for {video_id}, got"
                f" {num_consecutive}."
            )
    config_name = (config_name or ProceduralFashion.DEFAULT_CONFIG_NAME) if is_drawn else None
    first_rows = {video_id: frames[0] for video_id, frames in group_videos(photos).items()}
    missing = [video_id for video_id, _ in chosen if video_id not in first_rows]
    if missing:
        raise ValueError(
            f"`photo_split` must have the clips of the split {split}, but {photo_split} lacks {missing[0]!r}."
        )
    chosen_photos = photos, [first_rows[video_id] for video_id, _ in chosen]
    return Clips(
        rows, split, chosen, chosen_photos, num_clips, frames_per_clip, num_consecutive, seed, config_name, size
    )


def draw_targets(num_frames: int, count: int, rng: np.random.Generator) -> list[int]:
    """Draw distinct frames of a clip, sorted, from the range that [`load_clips`] describes."""
    start, stop = _range_of(num_frames, count)
    return sorted(rng.choice(np.arange(start, stop), count, replace=False).tolist())


def draw_run(num_frames: int, count: int, rng: np.random.Generator) -> list[int]:
    """Draw consecutive frames of a clip from the same range as [`draw_targets`]."""
    start, stop = _range_of(num_frames, count)
    first = int(rng.integers(start, stop - count + 1))
    return list(range(first, first + count))


def _range_of(num_frames: int, count: int) -> tuple[int, int]:
    # A window beyond the clip's end repeats the last pose, without motion. Frames soon after the photo, which is the
    # first frame, have nearly its pose.
    stop = max(num_frames - WINDOW_RADIUS, count + 1)
    return min(num_frames // 4 + 1, stop - count), stop
