# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of stage 1: model, data, pairs of frames, objective and validation."""

from dataclasses import dataclass
from typing import Any, Literal

from training.data.pair_settings import PairSettings
from training.options.fields import (
    LARGEST,
    check,
    check_counts,
    check_folder,
    check_limit,
    check_not_negative,
    check_size,
    option,
)


@dataclass(frozen=True)
class ModelOptions:
    """Model: the weights to start from, and the parts to train."""

    pretrained_model_name_or_path: str = option(
        "CompVis/stable-diffusion-v1-4",
        "folder or Hub id of the Stable Diffusion 1.x or DreamPose pipeline to start from",
    )
    revision: str | None = option(None, "branch, tag or commit of that pipeline on the Hub")
    image_encoder_name_or_path: str = option(
        "openai/clip-vit-base-patch32",
        "CLIP vision model to add to Stable Diffusion; a DreamPose pipeline has its own",
    )
    train_image_encoder: bool = option(
        False, "train the image encoder too; meant for an encoder without pretrained weights"
    )
    train_adapter: bool = option(
        True, "train the adapter; an untrained one passes CLIP's tokens through and ignores the VAE's (an ablation)"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    dry_run: bool = option(False, "print samples, time, memory and disk of the run, and start nothing")
    torch_compile_backend: str | None = option(
        None, "backend of torch.compile that compiles the UNet, usually inductor; none does not compile"
    )

    def __post_init__(self):
        if self.torch_compile_backend is not None:
            import torch

            backends = torch.compiler.list_backends(exclude_tags=())
            rule = "a backend of torch.compile, such as inductor or eager"
            check(self, rule, lambda name: name in backends, "torch_compile_backend")

    def trained_parts(self) -> list[str]:
        """Return the names of the trained parts for a model card."""
        others = {"adapter": self.train_adapter, "image encoder": self.train_image_encoder}
        return ["UNet", *(name for name, trains in others.items() if trains)]


@dataclass(frozen=True)
class DataOptions:
    """Data: the training pictures and their size."""

    train_data: str = option(
        "procedural",
        "folder of parquet files, Hub id of a data set, or `procedural` for drawn figures of 160x128 pixels"
        " (`procedural/half`: 80x64)",
    )
    height: int = option(640, "height of the pictures in pixels")
    width: int = option(512, "width of the pictures in pixels")

    def __post_init__(self):
        check_size(self)


@dataclass(frozen=True)
class PairOptions:
    """Samples: how frames of a clip become a reference, a target and a pose window."""

    pose_radius: int = option(2, "number of poses on each side of the target's own pose; 2 gives a window of five")
    reference_frames: Literal["any", "first"] = option(
        "any", "draw the reference from all frames of a clip, or always take the first"
    )
    max_reference_distance: int | None = option(
        None, "with `reference_frames` any: largest distance of the reference from the target, in frames"
    )
    fit: Literal["whole", "crop"] = option(
        "whole", "show a picture of another aspect ratio whole with continued borders, or crop its middle"
    )
    min_crop_scale: float = option(
        1.0, "smallest share of each side in random crops of target and poses; 1 does not crop"
    )
    bad_rows: Literal["raise", "skip"] = option(
        "raise", "stop at a row that cannot be used, or skip it and log the share of skipped rows"
    )
    latent_cache_dir: str | None = option(
        None, "folder of the latent cache: pictures are encoded once, and training then reads no picture"
    )
    streaming: bool = option(
        False, "read the training data as a stream, one video at a time, and store none of it on the disk"
    )

    def __post_init__(self):
        settings = self.settings()
        check_limit(self, LARGEST, "max_reference_distance")
        check_limit(self, 64, "pose_radius")
        check_folder(self, "latent_cache_dir")
        if self.latent_cache_dir is not None:
            settings.check_cacheable()
        if self.streaming and self.latent_cache_dir is not None:
            raise ValueError(
                "`latent_cache_dir` must be none with `streaming`, which keeps nothing, got"
                f" {self.latent_cache_dir!r}."
            )

    def settings(self, noise_offset: float = 0.0) -> PairSettings:
        """Return the settings that `training.data.frame_pairs` takes."""
        others = ("latent_cache_dir", "streaming")
        values = {name: value for name, value in vars(self).items() if name not in others}
        return PairSettings(noise_offset=noise_offset, **values)


@dataclass(frozen=True)
class ObjectiveOptions:
    """Objective: conditioning dropout, noise, timesteps and loss weights."""

    image_dropout_prob: float = option(0.05, "share of samples with the black picture in place of the photo")
    pose_dropout_prob: float = option(0.05, "share of samples without poses")
    joint_dropout_prob: float = option(0.05, "share of samples without photo and poses")
    snr_gamma: float | None = option(None, "gamma of min-SNR loss weights, usually 5.0; none for equal weights")
    noise_offset: float = option(0.0, "scale of extra noise that is constant over each channel")
    high_noise_fraction: float | None = option(
        None, "share of the timesteps drawn from `high_noise_start` upwards; none draws all timesteps equally"
    )
    high_noise_start: int = option(200, "first timestep of the range whose share is `high_noise_fraction`")

    def __post_init__(self):
        drops = ("image_dropout_prob", "pose_dropout_prob", "joint_dropout_prob")
        check(self, "within [0, 1]", lambda value: 0 <= value <= 1, *drops, "high_noise_fraction")
        total = sum(getattr(self, name) for name in drops)
        if total > 1:
            raise ValueError(f"{', '.join(f'`{name}`' for name in drops)} must sum to at most 1, got {total}.")
        check(self, "above 0", lambda value: value > 0, "snr_gamma")
        check_not_negative(self, "noise_offset", "snr_gamma")
        check(self, "within [0, 999]", lambda value: 0 <= value <= 999, "high_noise_start")

    def loss_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for [`training.models.denoiser.StageOneLoss`]."""
        return {name: value for name, value in vars(self).items() if name != "noise_offset"}


@dataclass(frozen=True)
class HeldOutOptions:
    """Validation: measurements of held-out pairs, and an animated held-out clip."""

    validation_steps: int | None = option(
        None, "number of steps between validations; the last step has one too; none never validates"
    )
    num_validation_pairs: int = option(16, "number of held-out frames for L1, PSNR and SSIM")
    num_validation_frames: int = option(16, "number of animated frames of the held-out clip")

    def __post_init__(self):
        check_counts(self, "validation_steps", "num_validation_pairs", "num_validation_frames")

    def sizes(self) -> dict[str, int]:
        """Return the keyword arguments for [`training.metrics.validation.build_validation`]."""
        return {name: value for name, value in vars(self).items() if name != "validation_steps"}


@dataclass(frozen=True)
class ValidationOptions(HeldOutOptions):
    """Validation: measurements of held-out pairs, and an animated held-out clip."""

    validation_inference_steps: int = option(10, "denoising steps per frame in validation")

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "validation_inference_steps", limit=1000)
