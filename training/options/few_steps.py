# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of distillation to few steps, in addition to those of stage 1 and `training.options.run`."""

from dataclasses import dataclass
from typing import Any, Literal

from training.options.fields import check, check_choice, check_counts, check_positive, option
from training.options.run import TrainOptions
from training.options.stage_one import DataOptions


SCALES = ("image_guidance_scale", "pose_guidance_scale")


@dataclass(frozen=True)
class TeacherOptions:
    """Teacher: the model to distil, and the guidance that becomes part of the student."""

    pretrained_model_name_or_path: str | None = option(
        None, "folder or Hub id of the DreamPose pipeline to distil, usually the output of train.py"
    )
    revision: str | None = option(None, "branch, tag or commit of that pipeline on the Hub")
    image_guidance_scale: float | None = option(
        None, "how closely the teacher's frames follow the photo; by default the scale stored in the model"
    )
    pose_guidance_scale: float | None = option(
        None, "how closely the teacher's frames follow the poses; by default the scale stored in the model"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")

    def __post_init__(self):
        check(self, "within [0, 1000]", lambda value: 0 <= value <= 1000, *SCALES)

    def named(self) -> str:
        """Return the teacher's folder or Hub id; raise a `ValueError` if it is missing."""
        if self.pretrained_model_name_or_path is None:
            raise ValueError(
                "`pretrained_model_name_or_path` is missing: give the folder or Hub id of a DreamPose pipeline."
            )
        return self.pretrained_model_name_or_path

    def scales(self) -> dict[str, float | None]:
        """Return the guidance scales by name; `None` stands for that stored in the model."""
        return {name: getattr(self, name) for name in SCALES}


@dataclass(frozen=True)
class StudentOptions:
    """Student: the weights to train, and how they are sampled afterwards."""

    train_mode: Literal["lora", "full"] = option(
        "lora", "train a LoRA, which is a small file for this model, or all weights of UNet and adapter"
    )
    rank: int = option(64, "rank of each LoRA layer")
    lora_alpha: int | None = option(None, "numerator of the LoRA's scale, `lora_alpha / rank`; by default the rank")
    num_inference_steps: int = option(1, "number of denoising steps to store as the student's default")

    def __post_init__(self):
        check_choice(self, "train_mode", ("lora", "full"))
        check_counts(self, "rank", limit=1280)
        check_counts(self, "lora_alpha", limit=10**6)
        check_counts(self, "num_inference_steps")


@dataclass(frozen=True)
class ConsistencyOptions:
    """Distillation: the teacher's steps, the timesteps and the loss."""

    num_ddim_timesteps: int = option(50, "number of the teacher's steps from noise to picture; it must divide 1000")
    last_timestep_prob: float = option(
        0.25, "share of samples at the last timestep, which is all that one-step sampling sees"
    )
    huber_scale: float = option(1e-3, "error at which the loss turns from quadratic to linear")

    def __post_init__(self):
        check(self, "at least 2 and divide 1000", lambda value: value >= 2 and 1000 % value == 0, "num_ddim_timesteps")
        check(self, "within [0, 1)", lambda value: 0 <= value < 1, "last_timestep_prob")
        check_positive(self, "huber_scale")

    def loss_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for [`training.models.distillation.ConsistencyLoss`]."""
        return vars(self).copy()


@dataclass(frozen=True)
class DistillTrainOptions(TrainOptions):
    """Run: steps, checkpoints, logs, learning rate and optimizer."""

    max_train_steps: int | None = option(1000, "number of optimizer steps, in place of `num_train_epochs`")
    train_batch_size: int = option(16, "samples per batch on each process")
    learning_rate: float = option(1e-4, "peak learning rate")
    ema_decay: float | None = option(
        0.95, "decay of the moving average of the weights, which makes the targets; none takes the last weights"
    )
    adam_weight_decay: float = option(0.0, "weight decay of AdamW and Muon")


@dataclass(frozen=True)
class DistillDataOptions(DataOptions):
    """Data: the training pictures and their size."""

    height: int | None = option(None, "height of the pictures in pixels; by default the model's own")
    width: int | None = option(None, "width of the pictures in pixels; by default the model's own")


METHOD_OPTIONS = (TeacherOptions, StudentOptions, ConsistencyOptions, DistillDataOptions, DistillTrainOptions)
