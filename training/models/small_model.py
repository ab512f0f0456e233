# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The small model that ships with the project: its components, saving, and pre-training of its image encoder.

Full-size models use Stable Diffusion's VAE and UNet and OpenAI's CLIP instead.
Legend: `B` batch, `S` side of the image encoder's square.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import LatentShape
from training.models.base_pipeline import build_adapter, build_feature_extractor, sampling_scheduler, widen_conv_in
from training.models.denoiser import freeze_post_layernorm


NUM_PARTS = 25  # DensePose's 24 parts and the background


def build_vae(
    latent_channels: int = 4, block_out_channels: tuple[int, ...] = (16, 32, 64), sample_size: int = 80
) -> AutoencoderKL:
    """Build a small `AutoencoderKL` with scaling factor 1; each level after the first halves the picture."""
    levels = len(block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=block_out_channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=sample_size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_image_encoder(
    image_size: int = 64, patch_size: int = 8, hidden_size: int = 128, num_layers: int = 3
) -> CLIPVisionModel:
    """Build a small `CLIPVisionModel`."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=max(1, hidden_size // 32),
        )
    )


def build_unet(
    latent_channels: int, cross_attention_dim: int, sample_size: tuple[int, int], block_out_channels: tuple[int, ...]
) -> UNet2DConditionModel:
    """Build a small Stable Diffusion UNet with cross-attention at every level and no pose channels yet."""
    levels = len(block_out_channels)
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=block_out_channels,
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=tuple(max(2, min(4, channels // 32)) for channels in block_out_channels),
        norm_num_groups=8,
    )


def build_pipeline(
    vae: AutoencoderKL,
    image_encoder: CLIPVisionModel,
    height: int,
    width: int,
    unet_channels: tuple[int, ...],
    pose_radius: int = 2,
) -> DreamPosePipeline:
    """Build a pipeline for stage 1 from trained encoders, an untrained UNet and an untrained adapter.

    The UNet predicts v: at this size it learns high noise levels far faster than epsilon. Guidance works the same for
    both, since its coefficients sum to 1.
    """
    shape = LatentShape.of(vae, height, width)
    sample_size = (shape.height, shape.width)
    unet = build_unet(shape.channels, image_encoder.config.hidden_size, sample_size, unet_channels)
    widen_conv_in(unet, pose_radius)
    return DreamPosePipeline(
        vae=vae,
        unet=unet,
        image_encoder=image_encoder,
        feature_extractor=build_feature_extractor(image_encoder.config.image_size),
        adapter=build_adapter(vae, image_encoder, height, width),
        scheduler=_build_scheduler(),
        default_height=height,
        default_width=width,
        default_num_inference_steps=4,
        default_image_guidance_scale=2.0,
        default_pose_guidance_scale=2.0,
        default_guidance_stop=0.75,
    )


def join_encoders(vae_dir: str, image_encoder_dir: str, *sizes: Any) -> DreamPosePipeline:
    """Call [`build_pipeline`] with the trained encoders of two folders; `sizes` are its other arguments."""
    vae, image_encoder = AutoencoderKL.from_pretrained(vae_dir), CLIPVisionModel.from_pretrained(image_encoder_dir)
    return build_pipeline(vae, image_encoder, *sizes)


def _build_scheduler() -> DPMSolverMultistepScheduler:
    """Return a DPM-Solver with Stable Diffusion's noise schedule.

    It keeps DDIM's settings in its configuration: a DDIM made from it would otherwise clip the latents to [-1, 1].
    """
    ddim = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    return sampling_scheduler(ddim)


class ImageEncoderTrainer(nn.Module):
    """Pre-training of an image encoder that has no CLIP weights: each token learns what its patch shows.

    From each patch token, linear heads predict the patch's colours on a grid of `grid` x `grid` cells, and DensePose's
    part, U and V averaged over the patch. The UNet's cross-attention needs both: the look and the place on the body.
    The heads are discarded after training.

    Args:
        image_encoder (`CLIPVisionModel`): The model to train.
        grid (`int`): Colour cells along one side of a patch.
    """

    def __init__(self, image_encoder: CLIPVisionModel, grid: int = 4):
        super().__init__()
        self.image_encoder, self.grid = image_encoder, grid
        freeze_post_layernorm(image_encoder)
        hidden_size = image_encoder.config.hidden_size
        self.color_head = nn.Linear(hidden_size, 3 * grid * grid)
        self.body_head = nn.Linear(hidden_size, NUM_PARTS + 2)

    def forward(
        self, clip_pixel_values: torch.Tensor, parts: torch.Tensor, uv: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts.

        Args:
            clip_pixel_values (`torch.Tensor`): Normalised square pictures, [B,3,S,S].
            parts (`torch.Tensor`): DensePose part of each pixel, [B,S,S], 0 for the background.
            uv (`torch.Tensor`): U and V of each pixel in [0,1], [B,2,S,S].
        """
        config = self.image_encoder.config
        side = config.image_size // config.patch_size
        tokens = self.image_encoder(clip_pixel_values).last_hidden_state[:, 1:]
        colors = F.adaptive_avg_pool2d(clip_pixel_values, side * self.grid)
        colors = F.pixel_unshuffle(colors, self.grid).flatten(2).transpose(1, 2)
        shares = F.one_hot(parts.long(), NUM_PARTS).permute(0, 3, 1, 2).to(tokens.dtype)
        shares, uv = (F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2) for maps in (shares, uv))
        body = self.body_head(tokens)
        color_loss = F.mse_loss(self.color_head(tokens), colors)
        part_loss = -(shares * F.log_softmax(body[..., :NUM_PARTS], -1)).sum(-1).mean()
        uv_loss = F.mse_loss(body[..., NUM_PARTS:], uv)
        loss = color_loss + 0.2 * part_loss + uv_loss
        return {"loss": loss, "color": color_loss.detach(), "part": part_loss.detach(), "uv": uv_loss.detach()}


def with_vae(pipeline: DreamPosePipeline, folder: str) -> DreamPosePipeline:
    """Return a pipeline with the VAE of a folder, around the same latents. Its frames get the size that it makes.

    Raises:
        ValueError: If the VAE has another number of latent channels.
    """
    vae = AutoencoderKL.from_pretrained(folder, dtype=pipeline.vae.dtype)
    before, after = (one.config.latent_channels for one in (pipeline.vae, vae))
    if before != after:
        raise ValueError(f"`vae` must have the {before} latent channels of the pipeline's, got {after}.")
    factor = 2 ** (len(vae.config.block_out_channels) - len(pipeline.vae.config.block_out_channels))
    sizes = {name: int(pipeline.config[name] * factor) for name in ("default_height", "default_width")}
    return DreamPosePipeline.from_pipe(pipeline, vae=vae, dtype=vae.dtype, **sizes)


def save_small_model(pipeline: DreamPosePipeline, folder: Path) -> None:
    """Save a pipeline in its own precision, to be sampled with few steps and loaded in float32 by default."""
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler)
    pipeline.save_pretrained(folder)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if "dtype" in config:
            # transformers would load its model in half precision, while diffusers loads the others in float32.
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")
