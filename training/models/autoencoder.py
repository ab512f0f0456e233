# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training of the VAE: the small model's from nothing, and stage 2's decoder.

Legend: `B` batch, `C` latent channels, `H W` pixels, `h w` latent cells.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from training.metrics.frames import psnr


def named_loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and logs, for `training.engine.loop`, of a module that returns both by name."""
    values = module(**batch)
    return values.pop("loss"), values


class VAETrainer(nn.Module):
    """The VAE and its loss. Adding an L1 to the MSE keeps edges, the MSE keeps colours: L1 alone loses them.

    Args:
        vae (`AutoencoderKL`): What is trained.
        mse_weight, l1_weight, kl_weight (`float`): Weights of the means over pixels, for the KL over latents.
    """

    def __init__(self, vae: AutoencoderKL, mse_weight: float = 8.0, l1_weight: float = 1.0, kl_weight: float = 3e-4):
        super().__init__()
        self.vae = vae
        self.mse_weight, self.l1_weight, self.kl_weight = mse_weight, l1_weight, kl_weight

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and its parts for pictures [B,3,H,W] in [-1,1] and posterior noise [B,C,h,w]."""
        posterior = self.vae.encode(pixel_values).latent_dist
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample
        mse, l1 = F.mse_loss(reconstruction, pixel_values), F.l1_loss(reconstruction, pixel_values)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = self.mse_weight * mse + self.l1_weight * l1 + self.kl_weight * kl
        # Pictures span 2 in [-1, 1]: the peak of the PSNR.
        return {"loss": loss, "psnr": 10 * torch.log10(4 / mse.detach()), "l1": l1.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def measure_psnr(self, pixel_values: torch.Tensor) -> float:
        """Mean PSNR in dB of the round trip through the posterior's mean, over pictures [N,3,H,W] in [-1,1]."""
        pixel_values = pixel_values.to(self.vae.device)
        restored = self.vae.decode(self.vae.encode(pixel_values).latent_dist.mode()).sample.clamp(-1, 1)
        return psnr(restored / 2 + 0.5, pixel_values / 2 + 0.5).mean().item()


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Give each latent channel mean 0 and scale 1 by changing `quant_conv` and `post_quant_conv`; pictures stay equal.

    Args:
        vae (`AutoencoderKL`): Changed in place.
        mean, std (`torch.Tensor`): Of each channel of the latents now, shape (C,).
    """
    channels = vae.config.latent_channels
    moments = vae.quant_conv
    moments.weight[:channels] /= std[:, None, None, None]
    moments.bias[:channels] = (moments.bias[:channels] - mean) / std
    # The second half is the log variance of the posterior.
    moments.bias[channels:] -= 2 * std.log()
    back = vae.post_quant_conv
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= std[None, :, None, None]


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, pixel_values: torch.Tensor, batch_size: int = 64) -> tuple[torch.Tensor, ...]:
    """Mean and standard deviation of each latent channel (posterior means) over pictures [N,3,H,W] in [-1,1]."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixel_values.split(batch_size)])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))
