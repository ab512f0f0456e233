# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Model and loss of stage 1: UNet and adapter as one module, and the denoising loss on a batch.

The formulas of the loss are in `training.models.objective`. Stage 2 trains its denoiser with the same loss.

Legend: `B` batch, `C` latent channels, `h w` latent cells, `T D` tokens and their width, `S` side of CLIP's square.
"""

import torch
from torch import nn
from transformers import CLIPVisionModel

from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline, clip_pixel_values, encode_pixels
from training.data.random_crops import to_pixel_values
from training.models.objective import (
    check_snr_gamma,
    denoising_loss,
    diffusion_target,
    draw_timesteps,
    drop_conditions,
    min_snr_weights,
    replace_rows,
)


def vae_token_weight(adapter: DreamPoseAdapter) -> torch.Tensor:
    """Return the adapter's mean absolute weight of the VAE tokens, a scalar: 0 in a new adapter."""
    return adapter.token_mixer.weight[:, adapter.config.num_image_tokens :].detach().abs().mean()


def freeze_post_layernorm(image_encoder: CLIPVisionModel) -> None:
    """Freeze the post-layernorm. The UNet sees the tokens before it, so DDP would wait for its gradient forever."""
    for name, parameter in image_encoder.named_parameters():
        if "post_layernorm" in name:
            parameter.requires_grad_(False)


class Denoiser(nn.Module):
    """UNet, adapter and image encoder in one module, with `requires_grad` set for training.

    Args:
        unet (`UNet2DConditionModel`): A UNet with input channels for the pose window.
        adapter (`DreamPoseAdapter`): The pipeline's adapter.
        image_encoder (`CLIPVisionModel`, *optional*): Needed only if batches hold pictures instead of its tokens.
        train_image_encoder (`bool`, *optional*, defaults to `False`): For models without a pretrained CLIP.
        train_adapter (`bool`, *optional*, defaults to `True`): A new adapter that is frozen outputs CLIP's tokens.
    """

    def __init__(
        self, unet, adapter, image_encoder=None, train_image_encoder: bool = False, train_adapter: bool = True
    ):
        super().__init__()
        self.unet, self.adapter, self.image_encoder = unet, adapter, image_encoder
        for parameter in (*unet.parameters(), *adapter.parameters()):
            parameter.requires_grad_(parameter.is_floating_point())  # 4-bit weights are stored as integers
        if not train_adapter:
            adapter.requires_grad_(False)
        if image_encoder is not None:
            image_encoder.requires_grad_(train_image_encoder)
            freeze_post_layernorm(image_encoder)

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        pose_window: torch.Tensor,
        image_latents: torch.Tensor,
        clip_pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the target of [`training.models.objective.diffusion_target`], shape `(B, C, h, w)`.

        Args:
            noisy_latents (`torch.Tensor`): Shape `(B, C, h, w)`.
            timesteps (`torch.Tensor`): Shape `(B,)`.
            pose_window (`torch.Tensor`): See `pipeline_dreampose.pose_window`; shape `(B, 2 (2 r + 1), h, w)`.
            image_latents (`torch.Tensor`): Scaled latents of the references, shape `(B, C, h, w)`.
            clip_pixel_values (`torch.Tensor`, *optional*): Input of the image encoder, shape `(B, 3, S, S)`.
            image_embeds (`torch.Tensor`, *optional*): Output of a frozen image encoder, shape `(B, T, D)`.
        """
        if image_embeds is None:
            image_embeds = self.image_encoder(clip_pixel_values.to(self.image_encoder.dtype)).last_hidden_state
        states = self.adapter(image_embeds, image_latents)
        return self.unet(torch.cat([noisy_latents, pose_window], dim=1), timesteps, states).sample


def build_denoiser(
    pipeline: DreamPosePipeline,
    train_image_encoder: bool = False,
    train_adapter: bool = True,
    gradient_checkpointing: bool = False,
    channels_last: bool = False,
    torch_compile_backend: str | None = None,
) -> Denoiser:
    """Return a pipeline's denoiser, ready to train in place; the VAE is frozen. See the options of stage 1."""
    pipeline.vae.requires_grad_(False)
    denoiser = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, train_image_encoder, train_adapter)
    if gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    denoiser.to(memory_format=torch.channels_last if channels_last else torch.preserve_format)
    if torch_compile_backend is not None:
        pipeline.unet.compile(backend=torch_compile_backend)
    return denoiser


class StageOneLoss:
    """The denoising loss as a function of (module, batch), for `training.engine.loop`.

    A batch holds samples of `FramePairs`, which the loss encodes, or of `LatentFramePairs`. The logs hold
    `vae_token_weight` if the adapter's own weights train, and `bad_rows`, the mean number of bad rows skipped for a
    sample, if bad rows are skipped.

    Args:
        pipeline (`DreamPosePipeline`): Provides VAE, image encoder, feature extractor and adapter.
        noise_scheduler: Adds the noise and defines the prediction type.
        shape (`LatentShape`): Sizes of pictures and latents, for the null image.
        image_dropout_prob, pose_dropout_prob, joint_dropout_prob (`float`): See `objective.drop_conditions`.
        snr_gamma (`float`, *optional*): See `objective.min_snr_weights`.
        high_noise_fraction, high_noise_start: See `objective.draw_timesteps`.
    Raises:
        ValueError: See `objective.check_snr_gamma`.
    """

    def __init__(
        self,
        pipeline: DreamPosePipeline,
        noise_scheduler,
        shape,
        image_dropout_prob: float = 0.05,
        pose_dropout_prob: float = 0.05,
        joint_dropout_prob: float = 0.05,
        snr_gamma: float | None = None,
        high_noise_fraction: float | None = None,
        high_noise_start: int = 0,
    ):
        check_snr_gamma(noise_scheduler, snr_gamma)
        self.vae, self.feature_extractor = pipeline.vae, pipeline.feature_extractor
        self.image_encoder, self.adapter = pipeline.image_encoder, pipeline.adapter
        self.encoder_is_frozen = not any(value.requires_grad for value in self.image_encoder.parameters())
        self.noise_scheduler = noise_scheduler
        self.dropout_probs = (image_dropout_prob, pose_dropout_prob, joint_dropout_prob)
        self.snr_gamma = snr_gamma
        self.high_noise = (high_noise_fraction, high_noise_start)
        black = torch.full((1, 3, shape.pixel_height, shape.pixel_width), -1.0, device=self.vae.device)
        self.null_reference = self.encode_references(black)

    @torch.no_grad()
    def encode_references(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `image_latents` and `image_embeds` of fitted photos [B,3,H,W].

        If the image encoder trains, its input `clip_pixel_values` takes the place of `image_embeds`.
        """
        latents = encode_pixels(pixel_values, self.vae).mode() * self.vae.config.scaling_factor
        encoder = self.image_encoder
        squares = clip_pixel_values(pixel_values, encoder.config.image_size, self.feature_extractor)
        if not self.encoder_is_frozen:
            return {"image_latents": latents.float(), "clip_pixel_values": squares}
        embeds = encoder(squares.to(encoder.dtype)).last_hidden_state
        return {"image_latents": latents.float(), "image_embeds": embeds.float()}

    @torch.no_grad()
    def encode_batch(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode a batch of `FramePairs` samples as `LatentFramePairs` samples."""
        posterior = encode_pixels(to_pixel_values(batch["target_image"]), self.vae)
        encoded = {"target_mean": posterior.mean.float(), "target_std": posterior.std.float()}
        return batch | encoded | self.encode_references(to_pixel_values(batch["reference_image"]))

    def __call__(self, module: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        """Return loss and logs of one batch."""
        if "target_image" in batch:
            batch = self.encode_batch(batch)
        drop_image, drop_pose = drop_conditions(batch["dropout_draw"], *self.dropout_probs)
        # The null image replaces the inputs of what trains, not its outputs: gradients flow through it too.
        reference = {name: replace_rows(batch[name], drop_image, null) for name, null in self.null_reference.items()}
        scheduler = self.noise_scheduler
        latents = batch["target_mean"] + batch["target_std"] * batch["posterior_noise"]
        latents = latents * self.vae.config.scaling_factor
        timesteps = draw_timesteps(batch["timestep_draw"], scheduler.config.num_train_timesteps, *self.high_noise)
        noisy_latents = scheduler.add_noise(latents, batch["noise"], timesteps)
        pose_window = replace_rows(batch["pose_window"], drop_pose, 0.0)
        model_pred = module(noisy_latents, timesteps, pose_window, **reference)
        target = diffusion_target(scheduler, latents, batch["noise"], timesteps)
        logs = {}
        if self.adapter.token_mixer.weight.requires_grad:  # not with a LoRA
            logs["vae_token_weight"] = vae_token_weight(self.adapter)
        if "num_bad_rows" in batch:
            logs["bad_rows"] = batch["num_bad_rows"].mean()
        return denoising_loss(model_pred, target, min_snr_weights(scheduler, timesteps, self.snr_gamma)), logs
