# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of the trainers: frozen dataclasses, of which each entry point composes those that it needs; parsed by
`training.options.parsing`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from training.data.pair_settings import PairSettings
from training.engine.optimizer import check_optimizer
from training.hub.model_card import PICTURE_SUFFIXES, is_repo_id


def _option(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _check(options: Any, rule: str, is_valid: Callable[[Any], bool], *names: str) -> None:
    """Raise a `ValueError` for the first of the named options that is set and breaks the rule."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not is_valid(value):
            raise ValueError(f"`{name}` must be {rule}, got {value!r}.")


def _check_counts(options: Any, *names: str) -> None:
    _check(options, "at least 1", lambda value: value >= 1, *names)


def _check_not_negative(options: Any, *names: str) -> None:
    _check(options, "a finite number, at least 0", lambda value: 0 <= value < math.inf, *names)


def _check_choice(options: Any, name: str, choices: Sequence[str]) -> None:
    _check(options, f"one of {', '.join(choices)}", lambda value: value in choices, name)


@dataclass(frozen=True)
class ModelOptions:
    """Stage 1: where the weights come from and which of them train besides UNet and adapter."""

    pretrained_model_name_or_path: str = _option(
        "CompVis/stable-diffusion-v1-4",
        "Hub id or folder of a Stable Diffusion 1.x or DreamPose pipeline to start from.",
    )
    revision: str | None = _option(None, "Branch, tag or commit of that repository on the Hub.")
    image_encoder_name_or_path: str = _option(
        "openai/clip-vit-base-patch32",
        "CLIP vision model to go with Stable Diffusion; a DreamPose pipeline has its own.",
    )
    train_image_encoder: bool = _option(
        False, "Train the image encoder too; only for one that has no weights yet. A pretrained CLIP stays frozen."
    )
    train_adapter: bool = _option(
        True, "Train the adapter; without, a new one passes CLIP's tokens on and the VAE's stay unused (an ablation)."
    )
    gradient_checkpointing: bool = _option(False, "Recompute activations in the backward pass: less memory, slower.")
    torch_compile_backend: str | None = _option(
        None, "Compile the UNet by this backend of torch.compile (`inductor` is usual), `none` to run it as it is."
    )

    def __post_init__(self):
        if self.torch_compile_backend is not None:
            _check_choice(self, "torch_compile_backend", torch.compiler.list_backends(exclude_tags=()))

    def trained_parts(self) -> list[str]:
        """What trains, as a card names it."""
        others = {"adapter": self.train_adapter, "image encoder": self.train_image_encoder}
        return ["UNet", *(name for name, trains in others.items() if trains)]


@dataclass(frozen=True)
class DataOptions:
    """The pictures that a trainer sees."""

    train_data: str = _option("procedural", "Folder of parquet files, id of a data set on the Hub, or `procedural`.")
    height: int = _option(640, "Height of the pictures in pixels.")
    width: int = _option(512, "Width of the pictures in pixels.")

    def __post_init__(self):
        _check(self, "a positive multiple of 8", lambda value: value > 0 and value % 8 == 0, "height", "width")


@dataclass(frozen=True)
class PairOptions:
    """How frames of a clip become a sample: a reference, a target, the poses around the target."""

    pose_radius: int = _option(2, "Poses on each side of the target's own; 2 makes the method's window of five.")
    reference_frames: Literal["any", "first"] = _option(
        "any", "Which frames of a clip serve as the reference: any of them, all alike, or its first."
    )
    max_reference_distance: int | None = _option(
        None, "With `any`: draw the reference from the frames at most so many from the target, all alike."
    )
    fit: Literal["whole", "crop"] = _option(
        "whole", "Show a picture of another aspect whole, its borders continued, or cut its middle out."
    )
    min_crop_scale: float = _option(
        1.0, "Below 1: target and poses show one random part with at least so much of the sides."
    )
    bad_rows: Literal["raise", "skip"] = _option(
        "raise", "Stop at a row that cannot be read or has no neighbours, or take the next one and log the share."
    )
    latent_cache_dir: str | None = _option(
        None, "Folder for encodings that never change while training; made once, then no picture is read or encoded."
    )
    streaming: bool = _option(
        False, "Read the training data as it is needed, one video at a time, and keep none of it on the disk."
    )

    def __post_init__(self):
        settings = self.settings()
        if self.latent_cache_dir is not None:
            settings.check_cacheable()
        if self.streaming and self.latent_cache_dir is not None:
            raise ValueError(
                "`latent_cache_dir` must be none with `streaming`, which keeps nothing, got"
                f" {self.latent_cache_dir!r}."
            )

    def settings(self, noise_offset: float = 0.0) -> PairSettings:
        """What `training.data.frame_pairs` takes of these options."""
        others = ("latent_cache_dir", "streaming")
        values = {name: value for name, value in vars(self).items() if name not in others}
        return PairSettings(noise_offset=noise_offset, **values)


@dataclass(frozen=True)
class ObjectiveOptions:
    """Stage 1: conditioning dropout, noise, timesteps and the weight of each in the loss."""

    image_dropout_prob: float = _option(0.05, "Share of samples that see the black picture in place of the photo.")
    pose_dropout_prob: float = _option(0.05, "Share of samples that see no pose.")
    joint_dropout_prob: float = _option(0.05, "Share of samples that see neither.")
    snr_gamma: float | None = _option(None, "Min-SNR weight of the loss (5.0 is usual), `none` for equal weights.")
    noise_offset: float = _option(0.0, "Scale of noise that is constant over each channel, added to the noise.")
    high_noise_fraction: float | None = _option(
        None, "Share of the timesteps drawn from `high_noise_start` on, `none` to draw all of them alike."
    )
    high_noise_start: int = _option(200, "First timestep of the range that `high_noise_fraction` favours.")

    def __post_init__(self):
        drops = ("image_dropout_prob", "pose_dropout_prob", "joint_dropout_prob")
        _check(self, "within [0, 1]", lambda value: 0 <= value <= 1, *drops, "high_noise_fraction")
        total = sum(getattr(self, name) for name in drops)
        if total > 1:
            raise ValueError(f"{', '.join(f'`{name}`' for name in drops)} must sum to at most 1, got {total}.")
        _check(self, "above 0", lambda value: value > 0, "snr_gamma")
        _check_not_negative(self, "noise_offset")
        _check(self, "within [0, 999]", lambda value: 0 <= value <= 999, "high_noise_start")

    def loss_arguments(self) -> dict[str, Any]:
        """The keyword arguments of [`training.models.denoiser.StageOneLoss`] that these options stand for."""
        return {name: value for name, value in vars(self).items() if name != "noise_offset"}


@dataclass(frozen=True)
class EncoderOptions:
    """The small model's own encoders, trained from nothing: which one, its size and its loss."""

    component: Literal["vae", "image_encoder", "pipeline"] = _option(
        "vae", "Train the VAE or the image encoder, or put both and an untrained UNet together as a pipeline."
    )
    vae_dir: str | None = _option(None, "For `pipeline`: folder of the trained VAE.")
    image_encoder_dir: str | None = _option(None, "For `pipeline`: folder of the trained image encoder.")
    unet_channels: list[int] = _option([48, 96, 128], "For `pipeline`: channels of each level of the UNet.")
    latent_channels: int = _option(4, "VAE: channels of the latents.")
    vae_channels: list[int] = _option([16, 32, 64], "VAE: channels of each level; n levels shrink by 2^(n-1).")
    mse_weight: float = _option(8.0, "VAE: weight of the squared error in the loss.")
    l1_weight: float = _option(1.0, "VAE: weight of the absolute error in the loss.")
    kl_weight: float = _option(3e-4, "VAE: weight of the KL divergence in the loss.")
    num_crop_steps: int = _option(0, "VAE: first so many optimizer steps on crops of half the size, the rest on all.")
    image_size: int = _option(64, "Image encoder: side of its square picture in pixels.")
    patch_size: int = _option(8, "Image encoder: side of a patch in pixels.")
    hidden_size: int = _option(128, "Image encoder: width of its tokens.")
    num_hidden_layers: int = _option(3, "Image encoder: layers.")

    def __post_init__(self):
        _check_choice(self, "component", ("vae", "image_encoder", "pipeline"))
        _check_counts(self, "latent_channels", "image_size", "patch_size", "hidden_size", "num_hidden_layers")
        rule = "a list of at least one positive number"
        _check(self, rule, lambda value: len(value) > 0 and min(value) >= 1, "vae_channels", "unet_channels")
        _check_not_negative(self, "mse_weight", "l1_weight", "kl_weight", "num_crop_steps")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size`, got {self.image_size}, {self.patch_size}."
            )


@dataclass(frozen=True)
class TrainOptions:
    """The run: steps, optimizer, schedule, checkpoints, logs. The same for every trainer."""

    output_dir: str = _option("output", "Folder for checkpoints, logs, options and the finished weights.")
    num_train_epochs: int = _option(5, "Times that the data set is gone through, if `max_train_steps` is none.")
    max_train_steps: int | None = _option(None, "Optimizer steps; wins over `num_train_epochs`. 0 only widens.")
    train_batch_size: int = _option(4, "Samples at a time on each process.")
    gradient_accumulation_steps: int = _option(1, "Batches that make one optimizer step.")
    learning_rate: float = _option(5e-6, "Learning rate at the peak of its schedule.")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = _option("constant", "Schedule of the learning rate.")
    lr_warmup_steps: int = _option(0, "Optimizer steps until the learning rate is at its peak.")
    lr_num_cycles: int = _option(1, "Times that `cosine_with_restarts` falls from the peak.")
    lr_power: float = _option(1.0, "Exponent of `polynomial`.")
    adam_beta1: float = _option(0.9, "AdamW's decay of the first moment; Muon's momentum.")
    adam_beta2: float = _option(0.999, "AdamW's decay of the second moment.")
    adam_weight_decay: float = _option(1e-2, "Weight decay of either.")
    adam_epsilon: float = _option(1e-8, "AdamW's epsilon.")
    optimizer: Literal["adamw", "muon"] = _option(
        "adamw", "Or `muon`: orthogonal steps for weights of 32 rows and columns or more; give it `adam_beta1` 0.95."
    )
    use_8bit_adam: bool = _option(False, "Keep AdamW's moments in 8 bit; wants CUDA and bitsandbytes.")
    max_grad_norm: float | None = _option(1.0, "Norm that gradients are clipped to, over all trained weights.")
    ema_decay: float | None = _option(None, "Decay of the average of the weights, `none` to go without.")
    seed: int = _option(0, "Seed of every random draw, data included.")
    dataloader_num_workers: int = _option(0, "Processes that load the data, 0 for the training process itself.")
    checkpointing_steps: int | None = _option(500, "Write a checkpoint every so many steps, and after the last.")
    checkpoints_total_limit: int | None = _option(2, "Keep the newest so many checkpoints, `none` for all.")
    resume_from_checkpoint: str | None = _option(None, "Go on from `latest`, if there is one, or from this folder.")
    logging_steps: int = _option(10, "Log the means over so many steps.")
    validation_steps: int | None = _option(None, "Validate every so many steps and after the last; `none`: never.")
    max_nonfinite_steps: int = _option(5, "Stop after so many steps in a row without a finite loss and gradient.")
    report_to: str | None = _option(
        None, "Log, besides to `log.jsonl`, to `tensorboard`, `wandb`, or `all` of them that are installed."
    )
    mixed_precision: str | None = _option(None, "`no`, `fp16`, `bf16`, or `none` for what accelerate is set to.")
    allow_tf32: bool = _option(False, "TensorFloat-32 for matrices of float32 on CUDA: faster, less exact.")
    channels_last: bool = _option(False, "Keep convolution weights in channels_last layout; faster on most devices.")

    def __post_init__(self):
        _check_counts(
            self,
            *("num_train_epochs", "train_batch_size", "gradient_accumulation_steps"),
            *("checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps"),
            *("max_nonfinite_steps", "lr_num_cycles"),
        )
        names = ("learning_rate", "adam_epsilon", "lr_power")
        _check(self, "a finite number above 0", lambda value: 0 < value < math.inf, *names)
        _check(self, "above 0", lambda value: value > 0, "max_grad_norm")
        _check(self, "within [0, 1)", lambda value: 0 <= value < 1, "adam_beta1", "adam_beta2", "ema_decay")
        _check_not_negative(
            self, "max_train_steps", "adam_weight_decay", "lr_warmup_steps", "dataloader_num_workers", "seed"
        )
        if self.lr_scheduler == "constant" and self.lr_warmup_steps > 0:
            raise ValueError(
                "`lr_warmup_steps` must be 0 with `lr_scheduler` constant (constant_with_warmup warms up), got"
                f" {self.lr_warmup_steps}."
            )
        check_optimizer(self.optimizer, self.use_8bit_adam)
        _check_choice(self, "mixed_precision", ("no", "fp16", "bf16"))
        _check_choice(self, "report_to", ("tensorboard", "wandb", "all"))

    def loop_arguments(self, num_samples: int | None, num_processes: int = 1) -> dict[str, Any]:
        """The keyword arguments of [`training.engine.loop.train`] that these options stand for.

        Args:
            num_samples (`int`, *optional*): Samples of one epoch, from which `max_train_steps` follows where it is
                none; `None` for a stream, whose length is not known.
            num_processes (`int`): Processes that share each step.
        Raises:
            ValueError: If neither steps nor samples are known.
        """
        others = ("num_train_epochs", "channels_last", "mixed_precision", "report_to", "allow_tf32")
        arguments = {name: value for name, value in vars(self).items() if name not in others}
        if self.max_train_steps is None:
            if num_samples is None:
                raise ValueError("`max_train_steps` must be given with `streaming`, got none.")
            num_steps = self.num_train_epochs * num_samples / self.global_batch_size(num_processes)
            arguments["max_train_steps"] = math.ceil(num_steps)
        return arguments

    def global_batch_size(self, num_processes: int = 1) -> int:
        """Samples of one optimizer step, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes

    def session_arguments(self) -> dict[str, Any]:
        """The keyword arguments of [`training.engine.session.open_session`] that these options stand for."""
        names = ("output_dir", "seed", "mixed_precision", "report_to", "allow_tf32", "use_8bit_adam")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ValidationOptions:
    """What is looked at every `validation_steps` of stage 1, always the same."""

    num_validation_pairs: int = _option(16, "Held-out frames that L1, PSNR and SSIM are measured on.")
    num_validation_frames: int = _option(16, "Frames of the held-out clip that is animated.")
    validation_inference_steps: int = _option(10, "Denoising steps of both.")

    def __post_init__(self):
        _check_counts(self, "num_validation_pairs", "num_validation_frames", "validation_inference_steps")


@dataclass(frozen=True)
class HubOptions:
    """Where the finished model goes besides `output_dir`."""

    push_to_hub: bool = _option(False, "Push the finished model, with its card, to the Hub.")
    hub_model_id: str | None = _option(None, "Its repository there: `you/name`, or `name` for your own.")
    hub_private_repo: bool = _option(True, "Keep a repository that is made anew private.")
    hub_picture: str | None = _option(
        None,
        "Picture for the card, of people who agreed; if none is given, stage 1 on `procedural` data shows its last"
        " validation and stage 2 what `hub_sample` asks for.",
    )
    hub_license: str | None = _option(
        None,
        "License for the card as the Hub names it; known by itself where training starts from Stable Diffusion 1.x.",
    )

    def __post_init__(self):
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError(f"`hub_model_id` must name a repository with `push_to_hub`, got {self.hub_model_id!r}.")
        _check(self, "a repository's id on the Hub", is_repo_id, "hub_model_id")
        names = ", ".join(PICTURE_SUFFIXES)
        is_picture = lambda value: Path(value).is_file() and Path(value).suffix.lower() in PICTURE_SUFFIXES  # noqa: E731
        _check(self, f"a file of {names}", is_picture, "hub_picture")
