# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of the trainers: frozen dataclasses, each entry point composes those that it needs.

Precedence: defaults < `--preset NAME` < `--config FILE` < flags. The two YAML files are turned into arguments in front
of the command line, so that types, ranges and misspelt names are checked in one way, wherever a value comes from.
"""

import argparse
import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from training.data.pair_settings import PairSettings


PRESETS_DIR = Path(__file__).parent / "presets"
OPTIONS_NAME = "options.yaml"


def _option(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _check(options: Any, rule: str, is_valid: typing.Callable[[Any], bool], *names: str) -> None:
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
    gradient_checkpointing: bool = _option(False, "Recompute activations in the backward pass: less memory, slower.")


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

    def __post_init__(self):
        settings = self.settings()
        if self.latent_cache_dir is not None:
            settings.check_cacheable()

    def settings(self, noise_offset: float = 0.0) -> PairSettings:
        """What `training.data.frame_pairs` takes of these options."""
        values = {name: value for name, value in vars(self).items() if name != "latent_cache_dir"}
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
    adam_beta1: float = _option(0.9, "AdamW's decay of the first moment.")
    adam_beta2: float = _option(0.999, "AdamW's decay of the second moment.")
    adam_weight_decay: float = _option(1e-2, "AdamW's weight decay.")
    adam_epsilon: float = _option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float | None = _option(1.0, "Norm that gradients are clipped to, over all trained weights.")
    ema_decay: float | None = _option(None, "Decay of the average of the weights, `none` to go without.")
    seed: int = _option(0, "Seed of every random draw, data included.")
    dataloader_num_workers: int = _option(0, "Processes that load the data, 0 for the training process itself.")
    checkpointing_steps: int | None = _option(500, "Write a checkpoint every so many steps, and after the last.")
    checkpoints_total_limit: int | None = _option(2, "Keep the newest so many checkpoints, `none` for all.")
    resume_from_checkpoint: str | None = _option(None, "Go on from `latest`, if there is one, or from this folder.")
    logging_steps: int = _option(10, "Log the means over so many steps.")
    validation_steps: int | None = _option(None, "Validate every so many steps and after the last; `none`: never.")
    max_nonfinite_steps: int = _option(5, "Stop after so many steps in a row without a finite loss.")
    mixed_precision: str | None = _option(None, "`no`, `fp16`, `bf16`, or `none` for what accelerate is set to.")
    channels_last: bool = _option(False, "Keep convolution weights in channels_last layout; faster on most devices.")

    def __post_init__(self):
        _check_counts(
            self,
            *("num_train_epochs", "train_batch_size", "gradient_accumulation_steps"),
            *("checkpointing_steps", "checkpoints_total_limit", "logging_steps", "validation_steps"),
            "max_nonfinite_steps",
        )
        _check(self, "a finite number above 0", lambda value: 0 < value < math.inf, "learning_rate", "adam_epsilon")
        _check(self, "above 0", lambda value: value > 0, "max_grad_norm")
        _check(self, "within [0, 1)", lambda value: 0 <= value < 1, "adam_beta1", "adam_beta2", "ema_decay")
        _check_not_negative(
            self, "max_train_steps", "adam_weight_decay", "lr_warmup_steps", "dataloader_num_workers", "seed"
        )
        _check_choice(self, "mixed_precision", ("no", "fp16", "bf16"))

    def loop_arguments(self, num_samples: int, num_processes: int = 1) -> dict[str, Any]:
        """The keyword arguments of [`training.loop.train`] that these options stand for.

        Args:
            num_samples (`int`): Samples of one epoch, from which `max_train_steps` follows where it is none.
            num_processes (`int`): Processes that share each step.
        """
        others = ("num_train_epochs", "mixed_precision", "channels_last")
        arguments = {name: value for name, value in vars(self).items() if name not in others}
        if self.max_train_steps is None:
            global_batch_size = self.train_batch_size * self.gradient_accumulation_steps * num_processes
            arguments["max_train_steps"] = math.ceil(self.num_train_epochs * num_samples / global_batch_size)
        return arguments


def parse(dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None) -> tuple:
    """Parse a command line into one instance of each dataclass: defaults < `--preset` < `--config` < flags.

    Args:
        dataclass_types (`Sequence[type]`): Option dataclasses without a field in common.
        argv (`Sequence[str]`, *optional*): Arguments without the program's name; `sys.argv[1:]` if `None`.
        description (`str`, *optional*): First lines of `--help`.
    Returns:
        `tuple`: The instances, in the order of `dataclass_types`.
    Raises:
        ValueError: If a value is out of range, a preset or file cannot be read, or it holds an unknown key.
        SystemExit: By the parser, for an unknown flag or a value of the wrong type.
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser = HfArgumentParser(dataclass_types, description=description, allow_abbrev=False)
    presets = sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))
    for target in (files, parser):
        target.add_argument("--preset", choices=presets, help="Settings that come with the project.")
        target.add_argument("--config", help="YAML file of settings, `name: value`; wins over the preset.")
    hints = {name: hint for kind in dataclass_types for name, hint in typing.get_type_hints(kind).items()}
    _accept_none(parser, hints)
    named, flags = files.parse_known_args(argv)
    arguments = []
    if named.preset is not None:
        arguments += read_config(PRESETS_DIR / f"{named.preset}.yaml", hints)
    if named.config is not None:
        arguments += read_config(named.config, hints)
    # Without `look_for_args_file=False` a file beside the script would be read in silence.
    *options, _, unknown = parser.parse_args_into_dataclasses(
        [*arguments, *flags], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return tuple(options)


def read_config(path: str | os.PathLike, hints: dict[str, Any]) -> list[str]:
    """Turn a YAML file of options into command-line arguments.

    Args:
        path (`str` or `os.PathLike`): File of one mapping, option name -> number, text, boolean, list or null.
        hints (`dict`): The known option names and their types.
    Raises:
        ValueError: If the file cannot be read, or holds a key or a kind of value that no option takes.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`config` must be a readable YAML file, got {path}: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`config` must hold one mapping of options, got {type(content).__name__} in {path}.")
    arguments = []
    for name, value in content.items():
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            advice = f" Did you mean `{close[0]}`?" if close else ""
            raise ValueError(f"`{name}` in {path} is no option of this command.{advice}")
        if not _is_possible(value, hints[name]):
            raise ValueError(f"`{name}` in {path} must be of type {_describe(hints[name])}, got {value!r}.")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        else:
            # One word, so that a value may begin with a hyphen.
            arguments.append(f"--{name}={'none' if value is None else value}")
    return arguments


def format_options(*options: Any) -> str:
    """All options as YAML text, in the order of their declaration, fit for `--config`."""
    content = {item.name: getattr(group, item.name) for group in options for item in dataclasses.fields(group)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def save_options(output_dir: str | os.PathLike, *options: Any) -> Path:
    """Write [`format_options`] to `options.yaml` in `output_dir`, which is made if missing.

    Returns:
        `Path`: The file.
    """
    path = Path(output_dir) / OPTIONS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(format_options(*options), encoding="utf-8")
    return path


def _takes_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _is_possible(value: Any, hint: Any) -> bool:
    """Whether a YAML value may stand for an option at all; the parser checks numbers, names and ranges."""
    if value is None:
        return _takes_none(hint)
    if isinstance(value, bool):
        # YAML reads a bare `no` as False, where `mixed_precision: "no"` was meant.
        return hint is bool
    return isinstance(value, list) == (typing.get_origin(hint) is list) and not isinstance(value, dict)


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _accept_none(parser: argparse.ArgumentParser, hints: dict[str, Any]) -> None:
    """Let `none` stand for None in the options that may be None, which HfArgumentParser offers no text for."""

    def wrap(convert: typing.Callable[[str], Any]) -> typing.Callable[[str], Any]:
        def convert_or_none(text: str) -> Any:
            return None if text.lower() == "none" else convert(text)

        convert_or_none.__name__ = convert.__name__  # argparse names the type in its messages
        return convert_or_none

    for action in parser._actions:
        if action.dest in hints and _takes_none(hints[action.dest]):
            action.type = wrap(action.type)
