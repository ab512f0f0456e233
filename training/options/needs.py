# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options that have an effect only together with another option.

A command line that names such an option without the other one is refused. Presets and files may hold both, since a
saved `options.yaml` holds all options.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.engine.messages import one_line


@dataclass(frozen=True)
class Need:
    """A condition without which some options have no effect.

    Args:
        names (`str`): The options, separated by spaces.
        other (`str`): The option that they need.
        only (`str`): What a message calls the condition; by default the other option's name.
        holds (`Callable`): Whether the other option's value fulfils it; by default any value but none, false and 0.
    """

    names: str
    other: str
    only: str = ""
    holds: Callable[[Any], bool] = bool


def _value(names: str, other: str, *values: str) -> Need:
    """Return the condition that the other option has one of these values."""
    return Need(names, other, f"`--{other} {' or '.join(values)}`", lambda value: str(value).lower() in values)


def _is_on_the_hub(name: str | None) -> bool:
    return name is None or not os.path.isdir(name)


def _is_no_dreampose(name: str) -> bool:
    """Whether a pipeline may be Stable Diffusion. One that cannot be read is reported later, when it is loaded."""
    from pipeline_dreampose import DreamPosePipeline
    from training.engine.hub_access import check_reachable

    try:
        check_reachable("pretrained_model_name_or_path", name, "be a pipeline's folder or Hub id")
        return DreamPosePipeline.load_config(name).get("_class_name") != "DreamPosePipeline"
    except (OSError, ValueError):
        return True


# A row counts for each command that has both options. Pairs that must not even come from a file are refused by the
# options' own checks.
NEEDS = (
    Need("revision", "pretrained_model_name_or_path", "a model on the Hub", _is_on_the_hub),
    Need("image_encoder_name_or_path", "pretrained_model_name_or_path", "Stable Diffusion", _is_no_dreampose),
    _value("num_train_epochs", "max_train_steps", "none"),
    _value("lr_num_cycles", "lr_scheduler", "cosine_with_restarts"),
    _value("lr_power", "lr_scheduler", "polynomial"),
    Need("high_noise_start", "high_noise_fraction", holds=lambda value: value is not None),
    Need("num_validation_pairs num_validation_frames validation_inference_steps", "validation_steps"),
    Need("hub_private_repo", "push_to_hub"),
    # Stage 2.
    _value("rank lora_alpha use_rslora use_dora lora_convolutions lora_conv_in", "train_mode", "lora"),
    _value("sample_inference_steps", "train_mode", "lora"),
    Need("decoder_learning_rate", "decoder_max_train_steps", "`--decoder_max_train_steps` above 0"),
    Need("person", "densepose"),
    Need("prior_prob num_textured_clips", "prior_dataset"),
    # The small model's encoders.
    _value("vae_dir", "component", "pipeline", "doubled_vae"),
    _value("image_encoder_dir unet_channels", "component", "pipeline"),
    _value("latent_channels vae_channels kl_weight", "component", "vae"),
    _value("latent_weight max_latent_noise", "component", "doubled_vae"),
    _value("mse_weight l1_weight num_crop_steps", "component", "vae", "doubled_vae"),
    _value("validation_steps channels_last", "component", "vae", "doubled_vae"),
    _value("image_size patch_size hidden_size num_hidden_layers", "component", "image_encoder"),
    _value("height width", "component", "vae", "doubled_vae", "pipeline"),
    *(
        _value(names, "component", "vae", "doubled_vae", "image_encoder")
        for names in (
            "train_data max_train_steps num_train_epochs train_batch_size gradient_accumulation_steps learning_rate",
            "lr_scheduler lr_warmup_steps lr_num_cycles lr_power optimizer use_8bit_adam adam_beta1 adam_beta2",
            "adam_weight_decay adam_epsilon max_grad_norm ema_decay dataloader_num_workers resume_from_checkpoint",
            "checkpointing_steps checkpoints_total_limit logging_steps max_nonfinite_steps",
        )
    ),
)


def find_idle_option(given: Mapping[str, Any], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """Return a message about the first option of a command line that has no effect, or `None`.

    Args:
        given (`Mapping`): Options of the command line. One that switches something off is not reported.
        values (`Mapping`): All options of the run.
        defaults (`Mapping`): All options' defaults.
    """
    for need in NEEDS:
        for name in need.names.split():
            is_asked = name in given and (bool(given[name]) or defaults[name] is True)
            if is_asked and need.other in values and not need.holds(values[need.other]):
                value = values[need.other]
                got = "" if value is None or value is False else f", got `--{need.other} {one_line(value, 200)}`"
                return f"`--{name}` must be given only with {need.only or f'`--{need.other}`'}{got}."
    return None
