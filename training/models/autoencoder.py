# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training of a VAE (in stage 2: of its decoder) and normalization of its latents.

Legend: `N` pictures, `B` batch, `C` latent channels, `H W` pixels, `h w` latent cells.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from training.metrics.frames import psnr


def named_loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and logs, for `training.engine.loop`, of a module that returns both in one dict."""
    values = module(**batch)
    return values.pop("loss"), values


class VAETrainer(nn.Module):
    """A VAE and its loss. The MSE keeps colours, which L1 alone loses; the L1 keeps edges.

    Args:
        vae (`AutoencoderKL`): The model to train.
        mse_weight, l1_weight, kl_weight (`float`): Weights of MSE and L1, means over pixels, and of the KL divergence,
            a mean over latents.
    """

    def __init__(self, vae: AutoencoderKL, mse_weight: float = 8.0, l1_weight: float = 1.0, kl_weight: float = 3e-4):
        super().__init__()
        self.vae = vae
        self.mse_weight, self.l1_weight, self.kl_weight = mse_weight, l1_weight, kl_weight

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for pictures [B,3,H,W] in [-1,1] and posterior noise [B,C,h,w]."""
        posterior = self.vae.encode(pixel_values).latent_dist
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample
        mse, l1 = F.mse_loss(reconstruction, pixel_values), F.l1_loss(reconstruction, pixel_values)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = self.mse_weight * mse + self.l1_weight * l1 + self.kl_weight * kl
        # The PSNR's peak is 2, the range of [-1, 1].
        return {"loss": loss, "psnr": 10 * torch.log10(4 / mse.detach()), "l1": l1.detach(), "kl": kl.detach()}

    def normalize(self, pixel_values: torch.Tensor) -> None:
        """Give the latents of pictures [N,3,H,W] in [-1,1] mean 0 and standard deviation 1, after the training."""
        normalize_latents(self.vae, *measure_latents(self.vae, pixel_values))

    @torch.no_grad()
    def restore(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return pictures [N,3,H,W] in [-1,1] decoded from the mean of their posterior, in [0,1]."""
        return self.vae.decode(self.vae.encode(pixel_values).latent_dist.mode()).sample.clamp(-1, 1) / 2 + 0.5

    def measure_psnr(self, pixel_values: torch.Tensor) -> dict[str, float]:
        """Return the mean PSNR in dB of restored pictures [N,3,H,W] in [-1,1]."""
        pixel_values = pixel_values.to(self.vae.device)
        return {"psnr": psnr(self.restore(pixel_values), pixel_values / 2 + 0.5).mean().item()}


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Change `quant_conv` and `post_quant_conv` so that each latent channel has mean 0 and standard deviation 1.

    `mean` and `std`, shape (C,), are those of the channels before. Decoded pictures stay the same.
    """
    channels = vae.config.latent_channels
    moments, back = vae.quant_conv, vae.post_quant_conv
    moments.weight[:channels] /= std[:, None, None, None]
    moments.bias[:channels] = (moments.bias[:channels] - mean) / std
    moments.bias[channels:] -= 2 * std.log()  # the posterior's log variance
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= std[None, :, None, None]


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, pixel_values: torch.Tensor, batch_size: int = 64) -> tuple[torch.Tensor, ...]:
    """Return mean and standard deviation of each latent channel (posterior means) of pictures [N,3,H,W] in [-1,1]."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixel_values.split(batch_size)])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))
