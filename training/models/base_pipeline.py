# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Base pipeline of a training run: Stable Diffusion with added pose channels, or a saved DreamPose pipeline."""

from collections.abc import Iterator
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
from training.engine.hub_access import check_reachable


@torch.no_grad()
def widen_conv_in(unet: UNet2DConditionModel, pose_radius: int = 2) -> None:
    """Add `2 (2 r + 1)` input channels for `pipeline_dreampose.pose_window` to a Stable Diffusion UNet, in place.

    The new weights are 0, so the output does not change (arXiv:2304.06025).

    Raises:
        ValueError: If `unet` has been widened before: its input and output channels differ.
    """
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"`unet` must have as many input channels as output channels, {unet.config.out_channels}, got"
            f" {unet.config.in_channels}."
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
    """Return the image encoder's preprocessor: it squeezes the whole picture into a square and crops nothing."""
    size = {"height": image_size, "width": image_size}
    return CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)


def build_adapter(vae: AutoencoderKL, image_encoder: CLIPVisionModel, height: int, width: int) -> DreamPoseAdapter:
    """Return a new adapter for `height` x `width` pictures; its output equals the image encoder's tokens."""
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
    """Return a saved pipeline's default sampler: DPM-Solver++ (arXiv:2211.01095) with the noise of `scheduler`.

    Its timesteps begin with the last one of training (trailing spacing, arXiv:2305.08891), which few steps need.
    `benchmarks/claims/schedulers.py` compares it with others.
    """
    return DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")


@contextmanager
def naming(argument: str, value: Any, rule: str = "lead to a model that can be loaded") -> Iterator[None]:
    """Turn an `OSError` from loading a model into a `ValueError` that names the argument."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`{argument}` must {rule}, got {value!r}: {reason}") from error


def load_index(name: str, revision: str | None = None, argument: str = "pretrained_model_name_or_path") -> dict:
    """Read a pipeline's `model_index.json`; raise a `ValueError` that names `argument` if `name` is not a pipeline."""
    rule = "be a pipeline's folder or Hub id"
    check_reachable(argument, name, rule)
    with naming(argument, name, rule):
        return DreamPosePipeline.load_config(name, revision=revision)


def load_dreampose_index(
    name: str, revision: str | None = None, argument: str = "pretrained_model_name_or_path"
) -> dict:
    """Read a pipeline's `model_index.json`; raise a `ValueError` if `name` is not a DreamPose pipeline."""
    index = load_index(name, revision, argument)
    kind = index.get("_class_name")
    if kind != "DreamPosePipeline":
        raise ValueError(
            f"`{argument}` must be a DreamPose pipeline, such as train.py writes, got {name!r}, a {kind}."
        )
    return index


def load_base_pipeline(
    name: str,
    height: int,
    width: int,
    pose_radius: int = 2,
    revision: str | None = None,
    image_encoder_name_or_path: str | None = None,
    argument: str = "pretrained_model_name_or_path",
    **loading: Any,
) -> DreamPosePipeline:
    """Load the pipeline that stage 1 starts from: a DreamPose pipeline, or Stable Diffusion and an image encoder.

    Args:
        name (`str`): Folder or Hub id of the pipeline.
        height, width (`int`): Size of the pictures. It becomes the pipeline's default.
        pose_radius (`int`, *optional*, defaults to 2): Frames on each side of the pose window's centre.
        revision (`str`, *optional*): Branch, tag or commit of the pipeline on the Hub.
        image_encoder_name_or_path (`str`, *optional*): CLIP vision model to combine with Stable Diffusion.
        argument (`str`, *optional*): What errors about `name` call it.
        loading: Further arguments of `DreamPosePipeline.from_pretrained`, for a DreamPose pipeline.
    Returns:
        `DreamPosePipeline`: In float32, on the CPU, unless `loading` says otherwise.
    Raises:
        ValueError: If `name` is not a pipeline; if its components do not fit each other, the size or `pose_radius`; or
            if its value ranges are those of converted weights, which can be sampled but not trained.
    """
    if load_index(name, revision, argument).get("_class_name") == "DreamPosePipeline":
        loading = {"dtype": torch.float32} | loading
        with naming(argument, name):
            pipeline = DreamPosePipeline.from_pretrained(name, revision=revision, **loading)
        if pipeline.pose_radius != pose_radius:
            raise ValueError(f"`pose_radius` must be the model's own, {pipeline.pose_radius}, got {pose_radius}.")
    else:
        # DreamPose does not use the text encoder, so it is not even downloaded.
        unused = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
        unused["requires_safety_checker"] = False
        with naming(argument, name):
            base = StableDiffusionPipeline.from_pretrained(name, revision=revision, **unused)
        widen_conv_in(base.unet, pose_radius)
        rule = "lead to a model that can be loaded"
        check_reachable("image_encoder_name_or_path", image_encoder_name_or_path, rule)
        with naming("image_encoder_name_or_path", image_encoder_name_or_path):
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
    for option, value in {"image_range": (-1, 1), "pose_range": (0, 1)}.items():
        if tuple(pipeline.config[option]) != value:
            raise ValueError(
                f"`{option}` of a pipeline to be trained must be {value}, got {pipeline.config[option]}: converted"
                " weights of the release can be animated, but not trained."
            )
    pipeline.register_to_config(default_height=height, default_width=width)
    return pipeline


def load_subject_base(
    name: str, revision: str | None = None, height: int | None = None, width: int | None = None, **loading: Any
) -> DreamPosePipeline:
    """Load the DreamPose pipeline that stage 2 starts from, with the pose window that it was trained with.

    Arguments and errors are those of [`load_base_pipeline`]; height and width are by default the pipeline's own.
    """
    index = load_dreampose_index(name, revision)
    with naming("pretrained_model_name_or_path", name):
        unet = UNet2DConditionModel.load_config(name, subfolder="unet", revision=revision)
    num_poses = (unet["in_channels"] - unet["out_channels"]) // 2
    size = (height or index["default_height"], width or index["default_width"])
    return load_base_pipeline(name, *size, pose_radius=num_poses // 2, revision=revision, **loading)


def four_bit_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that load the UNet's linear layers in 4 bit (NF4).

    `dtype` is that of the UNet's other weights and of its matrix products. All other models are loaded in float32.
    """
    unet = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {
        "quantization_config": PipelineQuantizationConfig(quant_mapping={"unet": unet}),
        "dtype": {"unet": dtype, "default": torch.float32},
    }


def is_quantized(model: nn.Module) -> bool:
    """Whether a model was loaded with quantized weights, whose dtype must not be changed."""
    return getattr(model, "is_quantized", False)
