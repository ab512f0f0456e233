# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Rows of a prepared data set, one a frame, as (reference, target, pose window) samples.

Item `n` of a training set here is the sample at global position `n` of a run: all its random draws come from one
generator seeded by (seed, n), so that workers, processes and resumption change nothing.

Legend: `C` latent channels, `H W` pixels, `h w` latent cells, `S` side of the image encoder's square.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset

from pipeline_dreampose import fit_image, fit_pose_maps, iuv_to_pose_map, pose_window, resize_pose_maps


REFERENCE_FRAMES = ("any", "first")


def sample_generator(seed: int, position: int) -> torch.Generator:
    """The CPU generator of all draws of the sample at one global position (negative ones serve whole epochs)."""
    state = int(np.random.SeedSequence([seed, position % 2**63]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_rows: int) -> torch.Tensor:
    return torch.randperm(num_rows, generator=sample_generator(seed, -1 - epoch))


def shuffled_index(seed: int, position: int, num_rows: int) -> int:
    """Row of a global position: every epoch goes through all rows once, in an order of its own."""
    epoch, offset = divmod(position, num_rows)
    return int(_epoch_order(seed, epoch, num_rows)[offset])


def group_videos(dataset: datasets.Dataset) -> dict[str, list[int]]:
    """Row numbers of each video's frames, in order.

    Args:
        dataset (`datasets.Dataset`): With columns `video_id` and `frame_index`.
    Returns:
        `dict`: `video_id` -> row numbers.
    """
    videos: dict[str, list[tuple[int, int]]] = {}
    for row, (video, frame) in enumerate(zip(dataset["video_id"], dataset["frame_index"])):
        videos.setdefault(video, []).append((frame, row))
    return {video: [row for _, row in sorted(frames)] for video, frames in videos.items()}


@dataclass(frozen=True)
class LatentShape:
    """Latent channels `C` and size `h` x `w` in cells, and the picture's size `height` x `width` in pixels."""

    channels: int
    height: int
    width: int
    pixel_height: int
    pixel_width: int

    @classmethod
    def of(cls, vae: AutoencoderKL, height: int, width: int) -> "LatentShape":
        """The latents of `height` x `width` pictures through an `AutoencoderKL`."""
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise ValueError(f"`height` and `width` must be multiples of {factor}, got {height} x {width}.")
        return cls(vae.config.latent_channels, height // factor, width // factor, height, width)


class FramePairs(Dataset):
    """Training samples: a reference and a target frame of one video, the target's real pose window, and all draws.

    Items hold `reference_pixel_values` and `target_pixel_values` [3,H,W] in [-1,1], `pose_window` [2(2r+1),h,w] in
    [0,1], `posterior_noise` and `noise` [C,h,w], and `timestep_draw` and `dropout_draw`, uniform in [0,1).

    Args:
        dataset (`datasets.Dataset`): Rows with `video_id`, `frame_index`, `image` and `iuv`.
        shape (`LatentShape`): Sizes of pictures and latents.
        seed (`int`): Of all draws.
        radius (`int`, *optional*, defaults to 2): Poses on each side of the target's in its window.
        reference_frames (`str`, *optional*, defaults to `"any"`):
            Which frame of a video may be the reference: `"any"`, or its `"first"`.
        noise_offset (`float`, *optional*, defaults to 0): Scale of noise that is constant over a channel.
    Raises:
        ValueError: If `reference_frames` is unknown or `dataset` has no rows.
    """

    def __init__(
        self,
        dataset,
        shape: LatentShape,
        seed: int,
        radius: int = 2,
        reference_frames: str = "any",
        noise_offset: float = 0.0,
    ):
        if reference_frames not in REFERENCE_FRAMES:
            raise ValueError(f"`reference_frames` must be one of {REFERENCE_FRAMES}, got {reference_frames!r}.")
        if len(dataset) == 0:
            raise ValueError("`dataset` must have at least one row, got 0.")
        self.dataset, self.shape, self.seed, self.radius = dataset, shape, seed, radius
        self.reference_frames, self.noise_offset = reference_frames, noise_offset
        self.videos = group_videos(dataset)
        self.video_of_row = {row: rows for rows in self.videos.values() for row in rows}

    def __len__(self) -> int:
        """Samples of one epoch; positions go on beyond it."""
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.seed, position)
        target = shuffled_index(self.seed, position, len(self.dataset))
        rows = self.video_of_row[target]
        choice = int(torch.randint(len(rows), (), generator=generator))
        reference = rows[0] if self.reference_frames == "first" else rows[choice]
        return self.read_reference(reference) | self.read_target(target) | self._draws(generator)

    def read_reference(self, row: int) -> dict[str, torch.Tensor]:
        """What a sample holds of its reference."""
        return {"reference_pixel_values": self.read_pixel_values(row)}

    def read_target(self, row: int) -> dict[str, torch.Tensor]:
        """What a sample holds of its target: the picture and the real poses around it."""
        return {"target_pixel_values": self.read_pixel_values(row), "pose_window": self.read_pose_window(row)}

    def read_pose_window(self, row: int) -> torch.Tensor:
        """The poses around a row's frame, [2(2r+1),h,w] in [0,1]."""
        rows = self.video_of_row[row]
        centre = rows.index(row)
        span = rows[max(0, centre - self.radius) : centre + self.radius + 1]
        # The span is shorter at a video's ends only, which is where a window repeats its border.
        return pose_window(torch.stack([self.read_pose_map(r) for r in span]), span.index(row), self.radius)

    def read_pose_map(self, row: int) -> torch.Tensor:
        """The fitted pose map of a row at latent size, [2,h,w] in [0,1]."""
        pose_map = iuv_to_pose_map(self.dataset[row]["iuv"])[None]
        pose_map = fit_pose_maps(pose_map, self.shape.pixel_height, self.shape.pixel_width)
        return resize_pose_maps(pose_map, self.shape.height, self.shape.width)[0]

    def read_pixel_values(self, row: int) -> torch.Tensor:
        """The fitted picture of a row, [3,H,W] in [-1,1]."""
        return fit_image(self.dataset[row]["image"], self.shape.pixel_height, self.shape.pixel_width)

    def _draws(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        size = (self.shape.channels, self.shape.height, self.shape.width)
        noise = torch.randn(size, generator=generator)
        return {
            "posterior_noise": torch.randn(size, generator=generator),
            "noise": noise + self.noise_offset * torch.randn(size[0], 1, 1, generator=generator),
            "timestep_draw": torch.rand((), generator=generator),
            "dropout_draw": torch.rand((), generator=generator),
        }


class LatentFramePairs(FramePairs):
    """The same samples from a latent cache: no picture is decoded or encoded while training.

    Items hold, instead of pictures, `target_mean` and `target_std` [C,h,w] (the posterior's, unscaled), and of the
    reference `image_latents` [C,h,w] (its scaled mean) and `clip_pixel_values` [3,S,S].

    Args:
        cache (`Mapping`): From `training.data.latent_cache.load_latent_cache`.
    Other arguments are those of `FramePairs`.
    """

    def __init__(self, dataset, shape: LatentShape, seed: int, cache: Mapping[str, torch.Tensor], **kwargs):
        super().__init__(dataset, shape, seed, **kwargs)
        self.cache = cache

    def read_reference(self, row: int) -> dict[str, torch.Tensor]:
        """The reference's scaled latents and the image encoder's input."""
        square = self.cache["clip_squares"][self.cache["square_of_row"][row]]
        return {
            "image_latents": self.cache["mean"][row].float() * self.cache["scaling_factor"],
            "clip_pixel_values": (square.float() / 255 - self.cache["clip_mean"]) / self.cache["clip_std"],
        }

    def read_target(self, row: int) -> dict[str, torch.Tensor]:
        """The target's posterior and the real poses around it."""
        mean, std = (self.cache[name][row].float() for name in ("mean", "std"))
        return {"target_mean": mean, "target_std": std, "pose_window": self.read_pose_window(row)}

    def read_pose_map(self, row: int) -> torch.Tensor:
        """The fitted pose map of a row at latent size, [2,h,w] in [0,1]; 8 bit, as IUV is."""
        return self.cache["pose_maps"][row].float() / 255
