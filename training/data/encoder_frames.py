# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Single frames as training samples of the embedded default's VAE and image encoder."""

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from training.data.frame_pairs import sample_generator, shuffled_index


def to_pixel_values(image: Image.Image) -> torch.Tensor:
    """A picture as [3,H,W] in [-1,1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def read_pictures(dataset: datasets.Dataset, num_pictures: int) -> torch.Tensor:
    """At most `num_pictures` pictures, evenly spread over the rows, [N,3,H,W] in [-1,1]."""
    rows = range(0, len(dataset), max(1, len(dataset) // num_pictures))[:num_pictures]
    return torch.stack([to_pixel_values(image) for image in dataset.select(rows)["image"]])


class VAEFrames(Dataset):
    """Pictures with posterior noise; small crops before position `crop_until`, whole frames after it.

    Crops let the first steps see several times as many pictures in equal time.

    Args:
        dataset (`datasets.Dataset`): Rows with `image`, all of one size.
        latent_channels (`int`): Channels of the posterior noise.
        scale_factor (`int`): Pixels along one side of a latent cell.
        seed (`int`): Of all draws.
        crop_until (`int`): Global position of the first whole frame.
    """

    def __init__(self, dataset, latent_channels: int, scale_factor: int, seed: int, crop_until: int = 0):
        self.dataset = dataset.select_columns(["image"])
        self.latent_channels, self.scale_factor = latent_channels, scale_factor
        self.seed, self.crop_until = seed, crop_until

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.seed, position)
        image = self.dataset[shuffled_index(self.seed, position, len(self.dataset))]["image"]
        pixel_values = to_pixel_values(image)
        if position < self.crop_until:
            height, width = (side // 2 for side in pixel_values.shape[1:])
            top, left = (int(torch.randint(side + 1, (), generator=generator)) for side in (height, width))
            pixel_values = pixel_values[:, top : top + height, left : left + width]
        cells = [side // self.scale_factor for side in pixel_values.shape[1:]]
        noise = torch.randn(self.latent_channels, *cells, generator=generator)
        return {"pixel_values": pixel_values, "noise": noise}


class ImageEncoderFrames(Dataset):
    """Square pictures, normalised as the image encoder takes them, with DensePose's parts and UV of the same square.

    Args:
        dataset (`datasets.Dataset`): Rows with `image` and `iuv`.
        feature_extractor (`CLIPImageProcessor`): Gives size, mean and standard deviation.
        seed (`int`): Of the order of the rows.
    """

    def __init__(self, dataset, feature_extractor, seed: int):
        self.dataset = dataset.select_columns(["image", "iuv"])
        self.size = feature_extractor.size["height"]
        self.mean, self.std = (
            torch.tensor(values)[:, None, None]
            for values in (feature_extractor.image_mean, feature_extractor.image_std)
        )
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        row = self.dataset[shuffled_index(self.seed, position, len(self.dataset))]
        square = row["image"].convert("RGB").resize((self.size, self.size), Image.BICUBIC)
        pixel_values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        # Codes are never mixed, so the nearest one is taken.
        vui = torch.from_numpy(np.array(row["iuv"].resize((self.size, self.size), Image.NEAREST))).permute(2, 0, 1)
        return {
            "clip_pixel_values": (pixel_values - self.mean) / self.std,
            "parts": vui[2],
            "uv": vui[[1, 0]].float() / 255,
        }
