"""Seeded pipelines, inputs and subjects of tiny size, made of the real classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline
from training.data.procedural_fashion import ProceduralFashionConfig


HEIGHT, WIDTH = 32, 24  # pixels, multiples of 4: VAE and UNet each halve once
LATENT_CHANNELS, LATENT_HEIGHT, LATENT_WIDTH = 4, 16, 12
IMAGE_SIZE, PATCH_SIZE, IMAGE_EMBED_DIM = 16, 8, 16
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
NUM_FRAMES = 5
RANK, ALPHA = 2, 6  # of `save_subject`
TARGETS = {
    "unet": ["to_q", "to_out.0", "conv_in"],
    "adapter": ["vae_projection", "token_mixer"],
    "vae": r"decoder\..*(conv1|conv_out)",
}


def get_unet(in_channels: int = LATENT_CHANNELS + 10, latent_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=(LATENT_HEIGHT, LATENT_WIDTH),
        in_channels=in_channels,
        out_channels=latent_channels,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=IMAGE_EMBED_DIM,
    )


def get_dummy_components(seed: int = 0, latent_channels: int = LATENT_CHANNELS, pose_radius: int = 2) -> dict:
    """Return all components of `DreamPosePipeline` by name; the same `seed` gives the same weights."""
    torch.manual_seed(seed)
    unet = get_unet(latent_channels + 2 * (2 * pose_radius + 1), latent_channels)
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=HEIGHT,
    )
    torch.manual_seed(seed)
    image_encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=IMAGE_EMBED_DIM,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        )
    )
    feature_extractor = CLIPImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
    )
    torch.manual_seed(seed)
    adapter = DreamPoseAdapter(
        image_embed_dim=IMAGE_EMBED_DIM,
        num_image_tokens=NUM_IMAGE_TOKENS,
        latent_channels=latent_channels,
        pooled_height=LATENT_HEIGHT // 2,
        pooled_width=LATENT_WIDTH // 2,
    )
    with torch.no_grad():  # a new adapter ignores the VAE tokens
        adapter.token_mixer.weight.add_(0.1 * torch.randn_like(adapter.token_mixer.weight))
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    components = {
        "vae": vae,
        "unet": unet,
        "image_encoder": image_encoder,
        "feature_extractor": feature_extractor,
        "adapter": adapter,
        "scheduler": scheduler,
    }
    for component in components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return components


def get_dummy_pipeline(seed: int = 0, **kwargs) -> DreamPosePipeline:
    """Return a tiny pipeline with defaults for its size; `kwargs` replace components and settings."""
    settings = {
        "default_height": HEIGHT,
        "default_width": WIDTH,
        "default_num_inference_steps": 2,
        "default_image_guidance_scale": 2.0,
        "default_pose_guidance_scale": 1.5,
    }
    pipe = DreamPosePipeline(**{**get_dummy_components(seed), **settings, **kwargs})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def get_dummy_image(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def get_dummy_iuv(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return a noisy IUV image with an empty border at the top and left."""
    rng = np.random.default_rng(seed)
    iuv = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    iuv[..., 2] = rng.integers(0, 25, (height, width))
    iuv[:4], iuv[:, :4] = 0, 0
    return Image.fromarray(iuv)


def get_dummy_inputs(seed: int = 0) -> dict:
    """Return arguments of a call: one photo, five poses, a seeded generator, tensors as output."""
    return {
        "image": get_dummy_image(seed),
        "pose_maps": [get_dummy_iuv(seed + i) for i in range(NUM_FRAMES)],
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }


def save_subject(folder, seed, parts=tuple(TARGETS), rank=RANK, **run_metadata):
    """Write a subject as training does, with random weights that are large enough to change the video."""
    components, layers = get_dummy_components(), {}
    torch.manual_seed(seed)
    for part in parts:
        config = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=TARGETS[part], init_lora_weights=False)
        components[part].add_adapter(config)
        weights = get_peft_model_state_dict(components[part])
        layers[f"{part}_lora_layers"] = {key: 0.3 * torch.randn_like(weight) for key, weight in weights.items()}
        layers[f"{part}_lora_adapter_metadata"] = config.to_dict()
    DreamPosePipeline.save_lora_weights(folder, **layers, run_metadata=run_metadata)
    return folder


def save_drawn_photos(folder: Path, subject: int, frame_indices: Sequence[int]) -> None:
    """Draw frames of a clip of the test split, 80x64 pixels, and save them as `view_0` and so on with their IUV."""
    frames = ProceduralFashionConfig(height=80, width=64).clip("test", subject, 0, list(frame_indices))
    for number, frame in enumerate(frames):
        save_photo(folder, f"view_{number}", Image.fromarray(frame.image), Image.fromarray(frame.iuv))


def save_photo(folder, stem, image, iuv, suffix=".png"):
    """Write a subject's photo and its IUV image, as stage 2 reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{stem}{suffix}")
    iuv.save(folder / f"{stem}_iuv.png")
    return folder
