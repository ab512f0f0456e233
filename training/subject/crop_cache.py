# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Random crops of a subject's photos, drawn and encoded before training so that no encoder runs in a step.

The crops depend only on photos, seed, settings and weights, so a resumed run makes the same ones. They stay in memory
in half precision. A crop takes 169 KB at 512x640 (mean and deviation of the latents 82, CLIP's tokens 77, pose map
10), and 64 crops of each of seven photos take 76 MB. A sample of the prior, whose reference is another frame, takes
251 KB.

Legend: `N` crops, `C` latent channels, `h w` latent cells, `T D` tokens and their width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from pipeline_dreampose import pose_window
from training.data.frame_pairs import FramePairs, sample_generator
from training.data.latent_cache import FrameEncoders, pictures_at_a_time
from training.data.random_crops import to_pixel_values
from training.subject.photos import SubjectPairs


# The positions of a run's samples are smaller. Crops are drawn from here on, the prior from `photos._PRIOR_POSITIONS`.
_CROP_POSITIONS = 2**61
_CROPS_OF_A_PHOTO = 2**32


class CachedSubjectPairs(SubjectPairs):
    """Samples of [`SubjectPairs`] in which each photo shows one of a finite number of encoded crops.

    Items hold `target_mean`, `target_std`, `image_latents` and `image_embeds` instead of pictures, as those of
    [`LatentFramePairs`] do. A sample draws its crops by its position.

    Args:
        pairs (`SubjectPairs`): Photos to encode, `num_crops` samples of its prior for each photo, and all its textured
            clips, as far as it has them.
        encoders (`FrameEncoders`): The models, with a frozen image encoder; the cache does not keep them.
        num_crops (`int`): Crops of each photo; if `min_crop_scale` is 1, the whole photo is the only one.
        show_progress (`bool`, *optional*, defaults to `True`): Show a progress bar.
    """

    def __init__(self, pairs: SubjectPairs, encoders: FrameEncoders, num_crops: int, show_progress: bool = True):
        self.num_crops = num_crops if pairs.settings.min_crop_scale < 1 else 1
        count, prior = len(pairs) * self.num_crops, pairs.prior
        if prior is not None:
            prior = _CachedSamples(prior, encoders, len(pairs) * num_crops, show_progress)
        textured = pairs.textured
        if textured is not None:
            textured = _CachedSamples(textured, encoders, len(textured), show_progress, "Textured clips")
        super().__init__(pairs.dataset, pairs.shape, pairs.seed, pairs.settings, prior, pairs.prior_prob, textured)
        self.scaling_factor = encoders.vae.config.scaling_factor
        batch_size = pictures_at_a_time(pairs.shape.pixel_height, pairs.shape.pixel_width)
        self.crops = _encode_all(count, batch_size, partial(self._encode, encoders), "Crops", show_progress)

    def read_crops(self, reference: int, target: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Read one crop of the reference photo and one of the target photo."""
        chosen = torch.randint(self.num_crops, (2,), generator=generator).tolist()
        seen, shown = (
            {name: tensor[photo * self.num_crops + crop].float() for name, tensor in self.crops.items()}
            for photo, crop in zip((reference, target), chosen)
        )
        return {
            "image_latents": seen["mean"] * self.scaling_factor,
            "image_embeds": seen["image_embeds"],
            "target_mean": shown["mean"],
            "target_std": shown["std"],
            "pose_window": pose_window(shown["pose_maps"][None] / 255, 0, self.settings.pose_radius),
        }

    def _encode(self, encoders: FrameEncoders, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Return `mean` and `std` [N,C,h,w], `image_embeds` [N,T,D] and `pose_maps` [N,2,h,w] of numbered crops."""
        frames = []
        for number in numbers:
            photo, crop = divmod(number, self.num_crops)
            generator = sample_generator(self.seed, _CROP_POSITIONS + photo * _CROPS_OF_A_PHOTO + crop)
            draws = torch.rand(3, generator=generator).tolist() if self.settings.min_crop_scale < 1 else None
            frames.append(self.read_frame(photo, draws))
        pixel_values, pose_maps = (torch.stack(tensors) for tensors in zip(*frames))
        encoded = encoders.encode_pictures(pixel_values) | encoders.encode_references(pixel_values)
        return encoded | {"pose_maps": pose_maps.mul(255).round().byte()}


class _CachedSamples(Dataset):
    """The first `num_samples` samples of other subjects or textured clips, encoded; each position draws one."""

    def __init__(
        self, pairs: FramePairs, encoders: FrameEncoders, num_samples: int, show_progress: bool, name: str = "Prior"
    ):
        self.pairs, self.num_samples, self.scaling_factor = pairs, num_samples, encoders.vae.config.scaling_factor
        batch_size = pictures_at_a_time(pairs.shape.pixel_height, pairs.shape.pixel_width)
        encode = partial(_encode_samples, pairs, encoders)
        self.samples = _encode_all(num_samples, batch_size, encode, name, show_progress)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        generator = sample_generator(self.pairs.seed, position)
        number = int(torch.randint(self.num_samples, (), generator=generator))
        sample = {name: tensor[number].float() for name, tensor in self.samples.items()}
        return self.pairs.draw(generator) | {
            "image_latents": sample["image_latents"] * self.scaling_factor,
            "image_embeds": sample["image_embeds"],
            "target_mean": sample["mean"],
            "target_std": sample["std"],
            "pose_window": sample["pose_window"] / 255,
        }


def _encode_samples(pairs: FramePairs, encoders: FrameEncoders, positions: list[int]) -> dict[str, torch.Tensor]:
    samples = [pairs[position] for position in positions]
    references, targets, windows = (
        torch.stack([sample[name] for sample in samples])
        for name in ("reference_image", "target_image", "pose_window")
    )
    references, targets = to_pixel_values(references), to_pixel_values(targets)
    encoded = encoders.encode_pictures(targets) | encoders.encode_references(references)
    latents = encoders.encode_pictures(references)["mean"]
    return encoded | {"image_latents": latents, "pose_window": windows.mul(255).round().byte()}


def _encode_all(
    count: int, batch_size: int, encode: Callable[[list[int]], dict[str, torch.Tensor]], name: str, show_progress: bool
) -> dict[str, torch.Tensor]:
    """Call `encode` for all numbers below `count`, `batch_size` at a time, and concatenate the results."""
    batches = []
    with tqdm(total=count, desc=name, unit="picture", disable=not show_progress) as progress:
        for numbers in torch.arange(count).split(batch_size):
            batches.append(encode(numbers.tolist()))
            progress.update(len(numbers))
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
