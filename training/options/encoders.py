# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options for training the small model's own encoders."""

from dataclasses import dataclass
from typing import Literal

from training.options.fields import (
    LARGEST_SIDE,
    check,
    check_choice,
    check_counts,
    check_limit,
    check_not_negative,
    option,
)


# Options that name the folders of trained models, by the component that is made from them.
BEGIN_WITH = {"pipeline": ("vae_dir", "image_encoder_dir"), "doubled_vae": ("vae_dir",)}


@dataclass(frozen=True)
class EncoderOptions:
    """Encoders: the component to train, its size and its loss."""

    component: Literal["vae", "doubled_vae", "image_encoder", "pipeline"] = option(
        "vae",
        "train the VAE, or one for pictures of twice the height and width around its latents, or the image encoder; or"
        " build a pipeline from VAE and image encoder and an untrained UNet",
    )
    vae_dir: str | None = option(None, "pipeline and doubled VAE: folder of the trained VAE")
    image_encoder_dir: str | None = option(None, "pipeline: folder of the trained image encoder")
    unet_channels: list[int] = option([48, 96, 128], "pipeline: channels of each level of the UNet")
    latent_channels: int = option(4, "VAE: number of latent channels")
    vae_channels: list[int] = option([16, 32, 64], "VAE: channels of each level; n levels shrink sides by 2^(n-1)")
    mse_weight: float = option(8.0, "VAE: weight of the squared error in the loss")
    l1_weight: float = option(1.0, "VAE: weight of the absolute error in the loss")
    kl_weight: float = option(3e-4, "VAE: weight of the KL divergence in the loss")
    latent_weight: float = option(1.0, "doubled VAE: weight of the squared error of the latents in the loss")
    max_latent_noise: float = option(
        0.0, "doubled VAE: largest standard deviation of the noise that its decoder is trained with, of latents' own 1"
    )
    num_crop_steps: int = option(0, "VAE: number of first optimizer steps on crops of half the size")
    validation_steps: int | None = option(
        None, "VAE: number of steps between measurements of PSNR on held-out pictures; none never measures"
    )
    image_size: int = option(64, "image encoder: side of its square input in pixels")
    patch_size: int = option(8, "image encoder: side of a patch in pixels")
    hidden_size: int = option(128, "image encoder: width of its tokens")
    num_hidden_layers: int = option(3, "image encoder: number of layers")

    def __post_init__(self):
        check_choice(self, "component", ("vae", "doubled_vae", "image_encoder", "pipeline"))
        check_counts(self, "latent_channels", "image_size", "patch_size", "hidden_size", "num_hidden_layers")
        check_counts(self, "validation_steps")
        check_limit(self, LARGEST_SIDE, "image_size", "hidden_size", "latent_channels")
        check_limit(self, 256, "num_hidden_layers")
        rule = "a list of at least one positive number"
        check(self, rule, lambda value: len(value) > 0 and min(value) >= 1, "vae_channels", "unet_channels")
        rule = f"at most 8 numbers of at most {LARGEST_SIDE}"
        check(self, rule, lambda v: len(v) <= 8 and max(v) <= LARGEST_SIDE, "vae_channels", "unet_channels")
        check_not_negative(self, "mse_weight", "l1_weight", "kl_weight", "num_crop_steps")
        check_not_negative(self, "latent_weight", "max_latent_noise")
        for name in BEGIN_WITH.get(self.component, ()):
            if getattr(self, name) is None:
                raise ValueError(
                    f"`{name}` is missing: `component` {self.component} needs the folder of a trained model."
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`, got {self.image_size}, {self.patch_size}."
            )
