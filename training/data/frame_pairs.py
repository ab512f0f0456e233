# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training samples (reference, target, pose window) from a prepared data set with one row per frame.

Item `n` is the sample at global position `n` of a run. One generator, seeded by (seed, n), makes all its random draws,
so workers, processes and resuming a run do not change samples.

Legend: `C` latent channels, `H W` pixels, `h w` latent cells.
"""

import io
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.utils.data import Dataset

from pipeline_dreampose import pose_window, to_rgb
from training.data.pair_settings import PairSettings
from training.data.pose_memo import PoseMemo
from training.data.random_crops import read_cells, read_levels, shown_box, to_pixel_values
from training.media.pictures import open_picture, upright


# Columns of the rows that samples are made from.
FEATURES = datasets.Features(
    video_id=datasets.Value("string"),
    frame_index=datasets.Value("int32"),
    image=datasets.Image(),
    iuv=datasets.Image(),
)


class Picture(datasets.Image):
    """Picture of a row, opened by [`open_picture`], which decodes only listed formats.

    Decoding raises `UnreadablePictures` if it cannot be read.
    """

    def decode_example(self, value: dict | Image.Image, token_per_repo_id: dict | None = None) -> Image.Image:
        """Decode the bytes of a row, or the local file that it names."""
        if not isinstance(value, dict):
            return value
        with open_picture(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as image:
            picture = upright(image)
            # The range of its levels, which a crop of it no longer tells, decides how they are read.
            return to_rgb(picture) if picture.mode in ("I", "F") else picture


def decode_safely(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return the data set with `image` and `iuv`, as far as it has them, decoded by [`Picture`]."""
    for name in ("image", "iuv"):
        dataset = dataset.cast_column(name, Picture()) if name in dataset.column_names else dataset
    return dataset


class BadRow(ValueError):
    """A row that cannot be used in a sample."""


def sample_generator(seed: int, position: int) -> torch.Generator:
    """Return the CPU generator for all draws of one sample; negative positions are for the draws of whole epochs."""
    state = int(np.random.SeedSequence([seed, position % 2**63]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_rows: int) -> torch.Tensor:
    return torch.randperm(num_rows, generator=sample_generator(seed, -1 - epoch))


def shuffled_index(seed: int, position: int, num_rows: int) -> int:
    """Return the row of a global position: every epoch visits all rows once, in its own order."""
    epoch, offset = divmod(position, num_rows)
    return int(_epoch_order(seed, epoch, num_rows)[offset])


def group_videos(dataset: datasets.Dataset) -> dict[str, list[int]]:
    """Return the row numbers of each video's frames in order, by `video_id`.

    Raises:
        ValueError: If a row has no `video_id` or no `frame_index`.
    """
    videos: dict[str, list[tuple[int, int]]] = {}
    for row, (video, frame) in enumerate(zip(dataset["video_id"], dataset["frame_index"])):
        if video is None or frame is None:
            names = {"video_id": video, "frame_index": frame}
            raise ValueError(
                f"`dataset` must have `video_id` and `frame_index` in each row, got {names} in row {row}."
            )
        videos.setdefault(video, []).append((frame, row))
    return {video: [row for _, row in sorted(frames)] for video, frames in videos.items()}


@dataclass(frozen=True)
class LatentShape:
    """Latent channels, size of the latents in cells (`height`, `width`), and size of the pictures in pixels."""

    channels: int
    height: int
    width: int
    pixel_height: int
    pixel_width: int

    @classmethod
    def of(cls, vae: AutoencoderKL, height: int, width: int) -> "LatentShape":
        """Return the shape of the latents of `height` x `width` pictures."""
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise ValueError(f"`height` and `width` must be multiples of {factor}, got {height} x {width}.")
        return cls(vae.config.latent_channels, height // factor, width // factor, height, width)

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height in pixels, in Pillow's order."""
        return self.pixel_width, self.pixel_height


class FramePairs(Dataset):
    """Training samples: a reference and a target frame of one video, the target's pose window, and all random draws.

    Items hold `reference_image` and `target_image` [3,H,W] in 8 bit, `pose_window` [2(2r+1),h,w] in [0,1],
    `posterior_noise` and `noise` [C,h,w], and `timestep_draw` and `dropout_draw`, uniform in [0,1). If bad rows are
    skipped, `num_bad_rows` counts the rows skipped before the item's row.

    Args:
        dataset (`datasets.Dataset`): Rows with `video_id`, `frame_index`, `image` and `iuv`.
        shape (`LatentShape`): Sizes of pictures and latents.
        seed (`int`): Seed of all draws.
        settings (`PairSettings`, *optional*): How frames become a sample.
        keeps_poses (`bool`, *optional*, defaults to `True`):
            Keep decoded pose maps on disk; useless if each map is read only once or twice.
    Raises:
        ValueError: If `dataset` has no rows.
    """

    def __init__(
        self, dataset, shape: LatentShape, seed: int, settings: PairSettings = PairSettings(), keeps_poses: bool = True
    ):
        if len(dataset) == 0:
            raise ValueError("`dataset` must have at least one row, got 0.")
        self.dataset, self.shape, self.seed, self.settings = dataset, shape, seed, settings
        self.has_targets_alone = False
        self.videos = group_videos(dataset)
        self.video_of_row = {row: rows for rows in self.videos.values() for row in rows}
        # Reading a row decodes all its pictures, so each column is a data set of its own.
        self.columns = {name: decode_safely(dataset.select_columns([name])) for name in ("image", "iuv")}
        self.names = dataset.select_columns(["video_id", "frame_index"])
        self.frame_indices = np.array(self.names["frame_index"][:])
        # The map of a random crop never occurs again.
        is_repeated = keeps_poses and settings.min_crop_scale == 1
        self.pose_memo = PoseMemo.open(len(dataset), shape.height, shape.width) if is_repeated else None

    def __len__(self) -> int:
        """Number of samples of one epoch; positions continue beyond it."""
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        skips = self.settings.bad_rows == "skip"
        for num_bad_rows in range(len(self)):
            row = shuffled_index(self.seed, position + num_bad_rows, len(self))
            try:
                sample = self.read_sample(row, sample_generator(self.seed, position))
                return sample | ({"num_bad_rows": torch.tensor(float(num_bad_rows))} if skips else {})
            except BadRow:
                if not skips:
                    raise
        raise ValueError(f"`dataset` must have at least one usable row, but all {len(self)} are bad.")

    def read_sample(self, row: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Make the sample whose target is a row's frame, with all its draws from `generator`.

        Raises:
            BadRow: If one of its frames is bad, whatever `bad_rows` says.
        """
        near = self.video_of_row[row]
        if self.settings.max_reference_distance is not None:
            distances = np.abs(self.frame_indices[near] - self.frame_indices[row])
            near = np.array(near)[distances <= self.settings.max_reference_distance]
        choice = int(torch.randint(len(near), (), generator=generator))
        reference = near[0] if self.settings.reference_frames == "first" else near[choice]
        draws = self.draw(generator)
        # Drawn last, so that a crop changes no other draw.
        crop = torch.rand(3, generator=generator).tolist() if self.settings.min_crop_scale < 1 else None
        return self.read_reference(int(reference)) | self.read_target(row, crop) | draws

    def targets_alone(self) -> "FramePairs":
        """Return a copy with the same targets and draws that reads neither references nor poses."""
        alone = copy(self)
        alone.has_targets_alone = True
        return alone

    def read_reference(self, row: int, crop: list[float] | None = None) -> dict[str, torch.Tensor]:
        """Return the reference's part of a sample."""
        return {} if self.has_targets_alone else {"reference_image": self.read_image(row, crop)}

    def read_target(self, row: int, crop: list[float] | None = None) -> dict[str, torch.Tensor]:
        """Return the target's part of a sample: picture and pose window, all with the same crop."""
        if self.has_targets_alone:
            return {"target_image": self.read_image(row, crop)}
        image, pose_map = self._read_frame(row, crop)
        rows, centre = self.window_rows(row)
        pose_maps = [pose_map if r == row else self.read_pose_map(r, crop) for r in rows]
        window = pose_window(torch.stack(pose_maps), centre, self.settings.pose_radius)
        return {"target_image": image, "pose_window": window}

    def read_frame(self, row: int, crop: list[float] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the picture of a row, [3,H,W] in [-1,1], and its pose map at latent size, [2,h,w] in [0,1]."""
        image, pose_map = self._read_frame(row, crop)
        return to_pixel_values(image), pose_map

    def read_pose_map(self, row: int, crop: list[float] | None = None) -> torch.Tensor:
        """Return the pose map of a row at latent size, [2,h,w] in [0,1]."""
        return self._read_pose(row, crop)[0]

    def read_pixel_values(self, row: int) -> torch.Tensor:
        """Return the picture of a row, [3,H,W] in [-1,1]."""
        return to_pixel_values(self.read_image(row))

    def read_image(self, row: int, crop: list[float] | None = None) -> torch.Tensor:
        """Return the picture of a row, [3,H,W] in 8 bit."""
        image = self._read(row, "image")
        return read_levels(image, self._box(image, crop), self.shape.canvas)

    def window_rows(self, row: int) -> tuple[list[int], int]:
        """Return the rows of a pose window, fewer at a video's ends, and the index of `row` among them."""
        rows, radius = self.video_of_row[row], self.settings.pose_radius
        centre = rows.index(row)
        rows = rows[max(0, centre - radius) : centre + radius + 1]
        if (np.diff(self.frame_indices[rows]) != 1).any():
            frames = self.frame_indices[rows].tolist()
            raise self.bad_row(row, f"the frames around it are {frames}, which do not follow one another")
        return rows, rows.index(row)

    def bad_row(self, row: int, reason: str) -> BadRow:
        """Return the error for a row, which names its video and frame."""
        name = self.names[row]
        return BadRow(
            f"`dataset` must hold whole rows, got frame {name['frame_index']} of video {name['video_id']!r}: {reason}."
        )

    def _read(self, row: int, column: str) -> Image.Image:
        try:
            picture = self.columns[column][row][column]
        except (OSError, ValueError) as error:
            raise self.bad_row(row, f"its `{column}` cannot be read ({error})") from error
        if picture is None:
            raise self.bad_row(row, f"it has no `{column}`")
        return picture

    def _box(self, picture: Image.Image, crop: list[float] | None) -> tuple[int, int, int, int]:
        part = () if crop is None else (self.settings.min_crop_scale, crop)
        return shown_box(picture.size, self.shape.canvas, self.settings.fit, *part)

    def _read_frame(self, row: int, crop: list[float] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the picture of a row, [3,H,W] in 8 bit, and its pose map at latent size."""
        image, (pose_map, size) = self._read(row, "image"), self._read_pose(row, crop)
        if image.size != size:
            raise self.bad_row(row, f"its picture has {image.size} pixels and its pose map {size}")
        return read_levels(image, self._box(image, crop), self.shape.canvas), pose_map

    def _read_pose(self, row: int, crop: list[float] | None) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the pose map of a row at latent size, [2,h,w] in [0,1], and the size of its IUV picture."""
        known = None if self.pose_memo is None else self.pose_memo.get(row)
        if known is not None:
            return known
        iuv, cells = self._read(row, "iuv"), (self.shape.width, self.shape.height)
        try:
            pose_map = read_cells(iuv, self._box(iuv, crop), self.shape.canvas, cells)
        except ValueError as error:
            raise self.bad_row(row, f"its `iuv` is not an IUV picture ({error})") from error
        if self.pose_memo is not None:
            self.pose_memo.put(row, pose_map, iuv.size)
        return pose_map, iuv.size

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw `posterior_noise`, `noise`, `timestep_draw` and `dropout_draw` of a sample."""
        size = (self.shape.channels, self.shape.height, self.shape.width)
        noise = torch.randn(size, generator=generator)
        return {
            "posterior_noise": torch.randn(size, generator=generator),
            "noise": noise + self.settings.noise_offset * torch.randn(size[0], 1, 1, generator=generator),
            "timestep_draw": torch.rand((), generator=generator),
            "dropout_draw": torch.rand((), generator=generator),
        }
