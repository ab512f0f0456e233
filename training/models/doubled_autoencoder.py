# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A VAE for pictures of twice the height and width around the latents of a trained VAE, so that its UNet stays.

Legend: `B` batch, `C` latent channels, `H W` pixels of the larger pictures, `h w` latent cells.
"""

import copy

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from training.metrics.frames import psnr
from training.models.autoencoder import VAETrainer


@torch.no_grad()
def double_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """Return a VAE for pictures of twice the height and width, with one more level outside the levels of `vae`.

    It begins as `vae` between averages of 2x2 pixels and repeated pixels, up to the borders of its convolutions, so
    training starts from enlarged pictures instead of noise.
    """
    config, outer = vae.config, vae.config.block_out_channels[0]
    doubled = AutoencoderKL.from_config(
        config,
        block_out_channels=(outer, *config.block_out_channels),
        down_block_types=(config.down_block_types[0], *config.down_block_types),
        up_block_types=(*config.up_block_types, config.up_block_types[-1]),
        sample_size=2 * config.sample_size,
    )
    state, levels = {}, len(config.block_out_channels)
    for name, value in vae.state_dict().items():
        part, block, *rest = name.split(".", 3)
        if (part, block) == ("encoder", "down_blocks"):
            name = ".".join([part, block, str(int(rest[0]) + 1), *rest[1:]])
        state[name] = value
    doubled.load_state_dict(state, strict=False)
    first, last = doubled.encoder.down_blocks[0], doubled.decoder.up_blocks[levels]
    for resnet in (*first.resnets, *last.resnets):  # a residual of 0
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    average, repeat = first.downsamplers[0].conv, doubled.decoder.up_blocks[levels - 1].upsamplers[0].conv
    for conv, rows, value in ((average, slice(0, 2), 0.25), (repeat, slice(1, 2), 1.0)):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        conv.weight[:, :, rows, rows] = torch.eye(outer)[:, :, None, None] * value
    return doubled


def shrink(pixel_values: torch.Tensor) -> torch.Tensor:
    """Return pictures [B,3,H,W] in half the height and width, each pixel centred on the first of its 2x2 pixels.

    A pose map of the latents' size holds the first pixel of each cell. In the larger picture, that pixel lies a
    quarter of a small pixel further to the top left, and the small picture moves by as much. Else the frames of a UNet
    that was trained with the smaller pictures would move against their poses.
    """
    weights = pixel_values.new_tensor([0.25, 0.5, 0.25])
    channels = pixel_values.shape[1]
    kernel = torch.outer(weights, weights).expand(channels, 1, 3, 3)
    padded = F.pad(pixel_values, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, stride=2, groups=channels)


class DoubledVAETrainer(VAETrainer):
    """A VAE from [`double_vae`] and its loss: the encoder learns the latents of the VAE that it comes from, for
    pictures that [`shrink`] halves, and the decoder learns to restore the larger pictures from those latents.

    Args:
        vae (`AutoencoderKL`): The model to train.
        base (`AutoencoderKL`): The VAE that it comes from. It is not trained.
        mse_weight, l1_weight (`float`): Weights of MSE and L1 of the pictures, means over pixels.
        latent_weight (`float`): Weight of the squared error of the latents.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        base: AutoencoderKL,
        mse_weight: float = 8.0,
        l1_weight: float = 1.0,
        latent_weight: float = 1.0,
    ):
        super().__init__(vae, mse_weight, l1_weight, kl_weight=0.0)
        self.latent_weight = latent_weight
        # In a list, since a module's parts are trained, averaged and saved.
        self._base = [copy.deepcopy(base).requires_grad_(False).eval()]

    @classmethod
    def around(cls, folder: str, *weights: float) -> "DoubledVAETrainer":
        """Return the trainer of a VAE around the latents of the one in a folder."""
        base = AutoencoderKL.from_pretrained(folder)
        return cls(double_vae(base), base, *weights)

    def normalize(self, pixel_values: torch.Tensor) -> None:
        """Do nothing: the latents stay those of the base."""

    @torch.no_grad()
    def base_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the encoder has to learn for pictures [B,3,H,W] in [-1,1]: latents [B,C,h,w]."""
        base = self._base[0].to(pixel_values.device)
        return base.encode(shrink(pixel_values)).latent_dist.mean

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for pictures [B,3,H,W] in [-1,1] and noise of the latents [B,C,h,w]."""
        latents = self.base_latents(pixel_values)
        latent_error = F.mse_loss(self.vae.encode(pixel_values).latent_dist.mean, latents)
        reconstruction = self.vae.decode(latents + noise).sample
        mse, l1 = F.mse_loss(reconstruction, pixel_values), F.l1_loss(reconstruction, pixel_values)
        loss = self.mse_weight * mse + self.l1_weight * l1 + self.latent_weight * latent_error
        psnr = 10 * torch.log10(4 / mse.detach())  # the peak is 2, the range of [-1, 1]
        return {"loss": loss, "psnr": psnr, "l1": l1.detach(), "latent_error": latent_error.detach()}

    def measure_psnr(self, pixel_values: torch.Tensor) -> dict[str, float]:
        """Return the mean PSNR in dB of restored pictures [N,3,H,W] in [-1,1], and that of both shrunk to half."""
        pixel_values = pixel_values.to(self.vae.device)
        pairs = self.restore(pixel_values), pixel_values / 2 + 0.5
        shrunk = [F.avg_pool2d(pictures, 2) for pictures in pairs]
        return {"psnr": psnr(*pairs).mean().item(), "shrunk_psnr": psnr(*shrunk).mean().item()}
