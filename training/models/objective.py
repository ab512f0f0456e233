# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Formulas of the training loss: conditioning dropout, timesteps, target, weights, error.

All are pure functions of tensors; `training.models.denoiser.StageOneLoss` puts them together.

Legend: `B` batch, `C` latent channels, `h w` latent cells.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr


def drop_conditions(
    draw: torch.Tensor, image_prob: float, pose_prob: float, joint_prob: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the samples that lose their image, pose or both (arXiv:2304.06025), by one random number per sample.

    Args:
        draw (`torch.Tensor`): Uniform in [0, 1), shape `(B,)`.
        image_prob, pose_prob, joint_prob (`float`): Probability of losing only the image, only the pose, or both.
    Returns:
        `tuple`: Two bool tensors of shape `(B,)`: image dropped, pose dropped.
    Raises:
        ValueError: If a probability is negative or their sum is more than 1.
    """
    if min(image_prob, pose_prob, joint_prob) < 0 or image_prob + pose_prob + joint_prob > 1:
        raise ValueError(
            "`image_prob`, `pose_prob` and `joint_prob` must be at least 0 and sum to at most 1, "
            f"got {image_prob}, {pose_prob} and {joint_prob}."
        )
    drop_both = draw < joint_prob
    drop_image = drop_both | ((draw >= joint_prob) & (draw < joint_prob + image_prob))
    drop_pose = drop_both | ((draw >= joint_prob + image_prob) & (draw < joint_prob + image_prob + pose_prob))
    return drop_image, drop_pose


def replace_rows(values: torch.Tensor, replaced: torch.Tensor, replacement: torch.Tensor | float) -> torch.Tensor:
    """Return `values` [B, ...] with `replacement` (broadcast) in the rows where `replaced` [B] is true."""
    return torch.where(replaced.view(-1, *[1] * (values.ndim - 1)), replacement, values)


def draw_timesteps(
    draw: torch.Tensor, num_train_timesteps: int, high_noise_fraction: float | None = None, high_noise_start: int = 0
) -> torch.Tensor:
    """Map uniform random numbers to timesteps (int64): uniform ones, or with a given share of high-noise timesteps.

    Args:
        draw (`torch.Tensor`): Uniform in [0, 1), shape `(B,)`.
        num_train_timesteps (`int`): Number of timesteps of the noise scheduler.
        high_noise_fraction (`float`, *optional*): Share of samples at `high_noise_start` and above; `None` is uniform.
        high_noise_start (`int`, *optional*, defaults to 0): First high-noise timestep.
    """
    if high_noise_fraction is None:
        return (draw * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
    share = 1 - high_noise_fraction
    low = draw / max(share, 1e-9) * high_noise_start
    high = high_noise_start + (draw - share) / max(high_noise_fraction, 1e-9) * (
        num_train_timesteps - high_noise_start
    )
    return torch.where(draw < share, low, high).long().clamp(0, num_train_timesteps - 1)


def diffusion_target(
    noise_scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Return the UNet's target by the scheduler's `prediction_type`, in the shape of `latents`.

    Raises:
        ValueError: If the prediction type is neither epsilon nor v_prediction.
    """
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"`prediction_type` must be epsilon or v_prediction, got {prediction_type!r}.")


def to_sample_and_noise(
    noise_scheduler: DDPMScheduler, model_pred: torch.Tensor, noisy_latents: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clean latents and the noise that a prediction means, float32 in the shape of `noisy_latents`.

    It is the inverse of [`diffusion_target`], with `noisy_latents = alpha * latents + sigma * noise`.

    Raises:
        ValueError: If the prediction type is neither epsilon nor v_prediction.
    """
    alpha, sigma = signal_and_noise_rates(noise_scheduler, timesteps)
    model_pred, noisy_latents = model_pred.float(), noisy_latents.float()
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return (noisy_latents - sigma * model_pred) / alpha, model_pred
    if prediction_type == "v_prediction":
        return alpha * noisy_latents - sigma * model_pred, alpha * model_pred + sigma * noisy_latents
    raise ValueError(f"`prediction_type` must be epsilon or v_prediction, got {prediction_type!r}.")


def signal_and_noise_rates(
    noise_scheduler: DDPMScheduler, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `alpha` and `sigma` of timesteps `(B,)`, whose squares sum to 1, with shape `(B, 1, 1, 1)`."""
    squares = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float().view(-1, 1, 1, 1)
    return squares.sqrt(), (1 - squares).sqrt()


def build_noise_scheduler(config: Mapping[str, Any], snr_gamma: float | None = None) -> DDPMScheduler:
    """Return the scheduler that adds the noise, from any scheduler's config, after [`check_snr_gamma`]."""
    scheduler = DDPMScheduler.from_config(config)
    check_snr_gamma(scheduler, snr_gamma)
    return scheduler


def check_snr_gamma(noise_scheduler: DDPMScheduler, snr_gamma: float | None) -> None:
    """Raise a `ValueError` if a loss weight of [`min_snr_weights`] would be 0 / 0."""
    if snr_gamma is None or noise_scheduler.config.prediction_type != "epsilon":
        return
    if noise_scheduler.alphas_cumprod.min().item() <= 0:
        raise ValueError(
            "`snr_gamma` must be none for a model with zero terminal SNR and epsilon prediction, where the last step"
            f" has no loss weight, got {snr_gamma}."
        )


def min_snr_weights(noise_scheduler: DDPMScheduler, timesteps: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
    """Return the loss weights min(SNR, gamma) for the prediction type (arXiv:2303.09556, section 3.4), shape `(B,)`.

    With `snr_gamma` `None` all weights are 1.
    """
    if snr_gamma is None:
        return torch.ones_like(timesteps, dtype=torch.float32)
    snr = compute_snr(noise_scheduler, timesteps)
    divisor = snr + 1 if noise_scheduler.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=snr_gamma) / divisor


def denoising_loss(model_pred: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the batch mean of each sample's mean squared error times its weight, a scalar in float32."""
    error = (model_pred.float() - target.float()).square().flatten(1).mean(1)
    return (error * weights).mean()


def pseudo_huber_loss(model_pred: torch.Tensor, target: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the mean of `sqrt(error^2 + scale^2) - scale`, a scalar in float32 (arXiv:2310.14189, section 3.3).

    It is quadratic for errors far below `scale` and linear far above.
    """
    error = model_pred.float() - target.float()
    return ((error.square() + scale**2).sqrt() - scale).mean()
