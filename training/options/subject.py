# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of stage 2, beside those of `training.options.run` that it shares with the other trainers."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from training.data.pair_settings import PairSettings
from training.options.poses import DENSEPOSE_HELP
from training.options.run import (
    ObjectiveOptions,
    TrainOptions,
    _check,
    _check_choice,
    _check_counts,
    _check_not_negative,
    _option,
)
from training.poses.detections import PERSON_RULES


@dataclass(frozen=True)
class SubjectOptions:
    """Stage 2: the model that learns one subject, and the photos that it sees."""

    pretrained_model_name_or_path: str | None = _option(
        None, "Hub id or folder of the DreamPose pipeline to start from, such as stage 1 writes."
    )
    revision: str | None = _option(None, "Branch, tag or commit of that repository on the Hub.")
    instance_data_dir: str = _option(
        "photos", "Folder of the subject's photos, each `<stem>.jpg` or `.png` with its IUV picture `<stem>_iuv.png`."
    )
    densepose: str | None = _option(
        None, f"Make the IUV pictures that are missing, beside their photos: {DENSEPOSE_HELP}."
    )
    person: Literal[PERSON_RULES] = _option(PERSON_RULES[0], "With `densepose`: whose of several people in a photo.")
    height: int | None = _option(None, "Height of the pictures in pixels, `none` for the model's own.")
    width: int | None = _option(None, "Width of the pictures in pixels, `none` for the model's own.")
    fit: Literal["whole", "crop"] = _option(
        "whole", "Show a photo of another aspect whole, its borders continued, or cut its middle out."
    )
    reference_frames: Literal["any", "first"] = _option(
        "any",
        "Which photos serve as the reference: any, or the first by name, such as a front view, where stage 1 took the"
        " first frames of clips; likewise of the prior's clips.",
    )
    min_crop_scale: float = _option(
        1.0,
        "Below 1, reference and target each show one random part of a photo with at least so much of its sides; use it"
        " where stage 1 did.",
    )
    prior_dataset: str | None = _option(
        None,
        "Prepared data set of other subjects, as `--train_data` of stage 1, to keep what the model knows of them; rows"
        " of it that cannot be used are passed over.",
    )
    prior_prob: float = _option(0.25, "Share of samples that are from `prior_dataset`, if there is one.")
    num_cached_crops: int = _option(
        64,
        "Draw so many parts of each photo, and as many samples of the prior, and encode them before the first phase,"
        " whose steps then run no encoder; 0: a new part for each sample, encoded in its step.",
    )
    gradient_checkpointing: bool = _option(True, "Recompute activations in the backward pass: less memory, slower.")

    def __post_init__(self):
        _check_choice(self, "person", PERSON_RULES)
        _check_not_negative(self, "num_cached_crops")
        _check(self, "a positive multiple of 8", lambda value: value > 0 and value % 8 == 0, "height", "width")
        _check(self, "within [0, 1)", lambda value: 0 <= value < 1, "prior_prob")
        self.settings()

    def settings(self, pose_radius: int = 2, noise_offset: float = 0.0) -> PairSettings:
        """What `training.subject.photos` takes of these options."""
        names = ("reference_frames", "fit", "min_crop_scale")
        return PairSettings(pose_radius, noise_offset=noise_offset, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class LoraOptions:
    """Stage 2: what of the model trains."""

    train_mode: Literal["lora", "full"] = _option(
        "lora", "Train a LoRA, which is a small file, or all weights of UNet, adapter and VAE decoder."
    )
    rank: int = _option(16, "LoRA: rank of every layer.")
    lora_alpha: int | None = _option(None, "LoRA: it counts `lora_alpha / rank`; `none` for the rank.")
    use_rslora: bool = _option(False, "LoRA: it counts `lora_alpha / sqrt(rank)` instead.")
    use_dora: bool = _option(False, "LoRA: train the norms of the weights apart (DoRA).")
    lora_convolutions: bool = _option(
        False, "LoRA: of the UNet's convolutions too, not of its attention alone; 58 MB instead of 21 at full size."
    )
    lora_conv_in: bool = _option(False, "LoRA: of the UNet's first layer too, which sees the poses.")
    quantize_base: bool = _option(
        False, "LoRA: hold the UNet's own linear layers in 4 bit (NF4) under it; wants CUDA and bitsandbytes."
    )

    def __post_init__(self):
        _check_choice(self, "train_mode", ("lora", "full"))
        _check_counts(self, "rank", "lora_alpha")
        if self.quantize_base and self.train_mode == "full":
            raise ValueError("`quantize_base` must go with `train_mode` lora: 4-bit weights do not train, got full.")

    def config_arguments(self) -> dict[str, Any]:
        """The arguments of [`training.models.lora.build_lora_configs`] that these options stand for."""
        others = ("train_mode", "quantize_base")
        return {name: value for name, value in vars(self).items() if name not in others}


@dataclass(frozen=True)
class DecoderOptions:
    """Stage 2: its second phase, the VAE's decoder; all else is as in the first."""

    decoder_max_train_steps: int = _option(100, "Optimizer steps of the VAE decoder; 0 skips this phase.")
    decoder_learning_rate: float = _option(5e-5, "Learning rate of the VAE decoder at the peak of its schedule.")

    def __post_init__(self):
        _check_not_negative(self, "decoder_max_train_steps")
        _check(self, "a finite number above 0", lambda value: 0 < value < math.inf, "decoder_learning_rate")

    def loop_arguments(self) -> dict[str, Any]:
        """The keyword arguments of [`training.engine.loop.train`] in which this phase differs from the first."""
        return {"max_train_steps": self.decoder_max_train_steps, "learning_rate": self.decoder_learning_rate}


@dataclass(frozen=True)
class SubjectObjectiveOptions(ObjectiveOptions):
    """Stage 2: the objective of stage 1, nothing dropped."""

    image_dropout_prob: float = _option(0.0, "Share of samples that see the black picture in place of the photo.")
    pose_dropout_prob: float = _option(0.0, "Share of samples that see no pose.")
    joint_dropout_prob: float = _option(0.0, "Share of samples that see neither.")


@dataclass(frozen=True)
class SubjectTrainOptions(TrainOptions):
    """Stage 2: the run, with the steps and the learning rate of the first phase, UNet and adapter."""

    max_train_steps: int | None = _option(
        100, "Optimizer steps of UNet and adapter; wins over `num_train_epochs`. 0 skips this phase."
    )
    train_batch_size: int = _option(1, "Samples at a time on each process; one wants the least memory.")
    gradient_accumulation_steps: int = _option(4, "Batches that make one optimizer step.")
    learning_rate: float = _option(1e-4, "Learning rate of UNet and adapter at the peak of its schedule.")


@dataclass(frozen=True)
class SubjectSampleOptions:
    """Stage 2: the photos' poses, sampled without the subject and with it, in `OUTPUT/before_after.png`."""

    sample_inference_steps: int = _option(10, "Denoising steps of these pictures; 0 draws none.")
    hub_sample: bool = _option(
        False, "Show them on the card and push them too: who is on them agreed. They stay here otherwise."
    )

    def __post_init__(self):
        _check_not_negative(self, "sample_inference_steps")
        if self.hub_sample and self.sample_inference_steps == 0:
            raise ValueError("`hub_sample` must go with `sample_inference_steps` above 0, got True with 0.")


METHOD_OPTIONS = (SubjectOptions, LoraOptions, DecoderOptions, SubjectObjectiveOptions, SubjectTrainOptions)
