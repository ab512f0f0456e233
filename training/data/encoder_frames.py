# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training samples of the small model's VAE and image encoder, made from single frames."""

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pipeline_dreampose import clip_pixel_values, fit_image
from training.data.frame_pairs import LatentShape, sample_generator, shuffled_index


def read_pictures(dataset: datasets.Dataset, shape: LatentShape, num_pictures: int) -> torch.Tensor:
    """Return at most `num_pictures` fitted pictures, evenly spread over the rows, [N,3,H,W] in [-1,1]."""
    rows = range(0, len(dataset), max(1, len(dataset) // num_pictures))[:num_pictures]
    images = dataset.select(rows)["image"]
    return torch.stack([fit_image(image, shape.pixel_height, shape.pixel_width) for image in images])


class VAEFrames(Dataset):
    """Pictures with noise of their latents: crops of half the size before global position `crop_until`, then whole
    frames.

    Crops let the first steps see several times as many pictures in the same time. `dataset` has rows with `image`. The
    noise has standard deviation 1, or one from 0 to `max_noise`, drawn for each picture.
    """

    def __init__(self, dataset, shape: LatentShape, seed: int, crop_until: int = 0, max_noise: float | None = None):
        self.dataset = dataset.select_columns(["image"])
        self.shape, self.seed, self.crop_until, self.max_noise = shape, seed, crop_until, max_noise

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.seed, position)
        image = self.dataset[shuffled_index(self.seed, position, len(self.dataset))]["image"]
        pixel_values = fit_image(image, self.shape.pixel_height, self.shape.pixel_width)
        cells = (self.shape.height, self.shape.width)
        if position < self.crop_until:
            height, width = (side // 2 for side in pixel_values.shape[1:])
            top, left = (int(torch.randint(side + 1, (), generator=generator)) for side in (height, width))
            pixel_values = pixel_values[:, top : top + height, left : left + width]
            cells = tuple(side // 2 for side in cells)
        noise = torch.randn(self.shape.channels, *cells, generator=generator)
        if self.max_noise is not None:
            noise *= self.max_noise * torch.rand((), generator=generator)
        return {"pixel_values": pixel_values, "noise": noise}


class ImageEncoderFrames(Dataset):
    """Square pictures, normalised for the image encoder, with DensePose's parts and UV of the same square.

    `dataset` has rows with `image` and `iuv`; `image_size` is the side of the square; `feature_extractor` (a
    `CLIPImageProcessor`) holds mean and standard deviation.
    """

    def __init__(self, dataset, image_size: int, feature_extractor, seed: int):
        self.dataset = dataset.select_columns(["image", "iuv"])
        self.image_size, self.feature_extractor, self.seed = image_size, feature_extractor, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        row = self.dataset[shuffled_index(self.seed, position, len(self.dataset))]
        pixel_values = fit_image(row["image"], *reversed(row["image"].size))
        # Nearest neighbour, since codes must not be mixed.
        codes = np.array(row["iuv"].resize((self.image_size, self.image_size), Image.Resampling.NEAREST))
        v, u, parts = torch.from_numpy(codes).permute(2, 0, 1)
        return {
            "clip_pixel_values": clip_pixel_values(pixel_values[None], self.image_size, self.feature_extractor)[0],
            "parts": parts,
            "uv": torch.stack([u, v]).float() / 255,
        }
