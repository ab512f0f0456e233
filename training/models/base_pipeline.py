# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The pipeline that training starts from: Stable Diffusion widened for poses, or a saved DreamPose pipeline."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    BitsAndBytesConfig,
    DPMSolverMultistepScheduler,
    PipelineQuantizationConfig,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModel

from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline
from training.data.frame_pairs import LatentShape


@torch.no_grad()
def widen_conv_in(unet: UNet2DConditionModel, pose_radius: int = 2) -> None:
    """Give a Stable Diffusion UNet `2 (2 r + 1)` more input channels for the pose window, in place.

    The old weights and the bias are kept and the new weights are 0, so that the widened UNet computes exactly what the
    old one did (arXiv:2304.06025).

    Raises:
        ValueError: If `unet` takes more channels than it gives, so was widened before.
    """
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"`unet` must take the {unet.config.out_channels} channels that it gives, got {unet.config.in_channels}."
        )
    old = unet.conv_in
    num_channels = old.in_channels + 2 * (2 * pose_radius + 1)
    new = nn.Conv2d(num_channels, old.out_channels, old.kernel_size, padding=old.padding)
    new = new.to(old.weight.device, old.weight.dtype)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=num_channels)


def build_feature_extractor(image_size: int) -> CLIPImageProcessor:
    """The image encoder's input: the whole picture squeezed into its square, nothing cropped."""
    size = {"height": image_size, "width": image_size}
    return CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)


def build_adapter(vae: AutoencoderKL, image_encoder: CLIPVisionModel, height: int, width: int) -> DreamPoseAdapter:
    """An adapter that passes the image encoder's tokens through, for pictures of `height` x `width`."""
    config = image_encoder.config
    shape = LatentShape.of(vae, height, width)
    return DreamPoseAdapter(
        image_embed_dim=config.hidden_size,
        num_image_tokens=(config.image_size // config.patch_size) ** 2 + 1,
        latent_channels=vae.config.latent_channels,
        pooled_height=shape.height // 2,
        pooled_width=shape.width // 2,
    )


def sampling_scheduler(scheduler: SchedulerMixin) -> DPMSolverMultistepScheduler:
    """What a saved pipeline samples with by default, DPM-Solver++ (arXiv:2211.01095) with the noise of `scheduler`:
    chosen by `benchmarks/claims/schedulers.py`."""
    return DPMSolverMultistepScheduler.from_config(scheduler.config)


@contextmanager
def _naming(argument: str, value: Any) -> Iterator[None]:
    """Files that cannot be loaded end in a `ValueError` that names the argument."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`{argument}` must lead to a model that can be loaded, got {value!r}: {reason}") from error


def load_index(name: str, revision: str | None = None) -> dict:
    """What a pipeline's `model_index.json` holds; a `ValueError` if `name` leads to none."""
    try:
        return DreamPosePipeline.load_config(name, revision=revision)
    except OSError as error:
        raise ValueError(
            f"`pretrained_model_name_or_path` must be a pipeline's folder or Hub id, got {name!r}: {error}"
        ) from error


def is_dreampose(index: Mapping[str, Any]) -> bool:
    """Whether a `model_index.json`, read by [`load_index`], is a DreamPose pipeline's."""
    return index.get("_class_name") == "DreamPosePipeline"


def load_dreampose_index(name: str, revision: str | None = None) -> dict:
    """What a DreamPose pipeline's `model_index.json` holds; a `ValueError` if `name` leads to no such pipeline."""
    index = load_index(name, revision)
    if not is_dreampose(index):
        raise ValueError(
            f"`pretrained_model_name_or_path` must be a DreamPose pipeline, such as stage 1 writes, got {name!r}, a"
            f" {index.get('_class_name')}."
        )
    return index


def load_base_pipeline(
    name: str,
    height: int,
    width: int,
    pose_radius: int = 2,
    revision: str | None = None,
    image_encoder_name_or_path: str | None = None,
    **loading: Any,
) -> DreamPosePipeline:
    """The pipeline that stage 1 starts from: a DreamPose one as it is, or Stable Diffusion with the encoder it needs.

    Args:
        name (`str`): Folder or Hub id of the pipeline.
        height, width (`int`): Size of the pictures, which becomes the pipeline's default.
        pose_radius (`int`, *optional*, defaults to 2): Of the pose window, where the UNet is widened here.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        image_encoder_name_or_path (`str`, *optional*): CLIP vision model to go with Stable Diffusion.
        loading: Further arguments of `DreamPosePipeline.from_pretrained`, for a DreamPose pipeline.
    Returns:
        `DreamPosePipeline`: In float32, on the CPU, unless `loading` says otherwise.
    Raises:
        ValueError: If the name leads to no pipeline, its parts do not fit each other, the size or the pose window, or
            its value ranges are those of converted weights, which can be sampled but not trained.
    """
    if is_dreampose(load_index(name, revision)):
        loading = {"dtype": torch.float32} | loading
        with _naming("pretrained_model_name_or_path", name):
            pipeline = DreamPosePipeline.from_pretrained(name, revision=revision, **loading)
        if pipeline.pose_radius != pose_radius:
            raise ValueError(f"`pose_radius` must be the model's own, {pipeline.pose_radius}, got {pose_radius}.")
    else:
        # The text side has no part in DreamPose, so it is not even fetched.
        unused = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
        unused["requires_safety_checker"] = False
        with _naming("pretrained_model_name_or_path", name):
            base = StableDiffusionPipeline.from_pretrained(name, revision=revision, **unused)
        widen_conv_in(base.unet, pose_radius)
        with _naming("image_encoder_name_or_path", image_encoder_name_or_path):
            image_encoder = CLIPVisionModel.from_pretrained(image_encoder_name_or_path, dtype=torch.float32)
        pipeline = DreamPosePipeline(
            vae=base.vae,
            unet=base.unet,
            image_encoder=image_encoder,
            feature_extractor=build_feature_extractor(image_encoder.config.image_size),
            adapter=build_adapter(base.vae, image_encoder, height, width),
            scheduler=sampling_scheduler(base.scheduler),
        )
    pipeline.check_components()
    pipeline.check_size(height, width)
    ranges = {"image_range": (-1, 1), "pose_range": (0, 1)}
    for option, value in ranges.items():
        if tuple(pipeline.config[option]) != value:
            raise ValueError(f"`{option}` of a pipeline to be trained must be {value}, got {pipeline.config[option]}.")
    pipeline.register_to_config(default_height=height, default_width=width)
    return pipeline


def load_subject_base(
    name: str, revision: str | None = None, height: int | None = None, width: int | None = None, **loading: Any
) -> DreamPosePipeline:
    """The DreamPose pipeline that stage 2 starts from, with the pose window that it was trained with.

    Args:
        name (`str`): Folder or Hub id of the pipeline.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        height, width (`int`, *optional*): Size of the pictures, which becomes the pipeline's default; its own if
            `None`.
        loading: Further arguments of `DreamPosePipeline.from_pretrained`.
    Returns:
        `DreamPosePipeline`: In float32, on the CPU, unless `loading` says otherwise.
    Raises:
        ValueError: If it is no DreamPose pipeline, or one that [`load_base_pipeline`] refuses.
    """
    index = load_dreampose_index(name, revision)
    with _naming("pretrained_model_name_or_path", name):
        unet = UNet2DConditionModel.load_config(name, subfolder="unet", revision=revision)
    num_poses = (unet["in_channels"] - unet["out_channels"]) // 2
    size = (height or index["default_height"], width or index["default_width"])
    return load_base_pipeline(name, *size, pose_radius=num_poses // 2, revision=revision, **loading)


def four_bit_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a pipeline's `from_pretrained` that load the weights of its UNet's linear layers as NF4.

    Args:
        dtype (`torch.dtype`): Of the UNet's other weights, and what products are computed in.
    Returns:
        `dict[str, Any]`: `quantization_config`, and `dtype`, in which all other models stay in float32.
    """
    unet = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {
        "quantization_config": PipelineQuantizationConfig(quant_mapping={"unet": unet}),
        "dtype": {"unet": dtype, "default": torch.float32},
    }


def is_quantized(model: nn.Module) -> bool:
    """Whether it was loaded so; its weights are then left in the form that they have."""
    return getattr(model, "is_quantized", False)
