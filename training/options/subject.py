# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Options of stage 2, in addition to those of `training.options.run`."""

from dataclasses import dataclass
from typing import Any, Literal

from training.data.pair_settings import PairSettings
from training.options.densepose import DENSEPOSE_HELP
from training.options.fields import (
    LARGEST,
    check,
    check_choice,
    check_counts,
    check_limit,
    check_not_negative,
    check_positive,
    check_size,
    option,
)
from training.options.run import TrainOptions
from training.options.stage_one import ObjectiveOptions
from training.poses.clip_settings import PERSON_RULES


@dataclass(frozen=True)
class SubjectOptions:
    """Subject: the model to start from, the photos and the other subjects."""

    pretrained_model_name_or_path: str | None = option(
        None, "folder or Hub id of the DreamPose pipeline to start from, usually the output of train.py"
    )
    revision: str | None = option(None, "branch, tag or commit of that pipeline on the Hub")
    instance_data_dir: str = option(
        "photos", "folder of the subject's photos, such as `a.jpg`, each with its IUV picture, such as `a_iuv.png`"
    )
    densepose: str | None = option(None, f"for photos without an IUV picture: {DENSEPOSE_HELP}")
    person: Literal[PERSON_RULES] = option(PERSON_RULES[0], "with `densepose`: the person to use among several")
    height: int | None = option(None, "height of the pictures in pixels; by default the model's own")
    width: int | None = option(None, "width of the pictures in pixels; by default the model's own")
    fit: Literal["whole", "crop"] = option(
        "whole", "show a photo of another aspect ratio whole with continued borders, or crop its middle"
    )
    reference_frames: Literal["any", "first"] = option(
        "any",
        "draw the reference from all photos, or always take the first by name; choose as in the training of the model;"
        " it holds for the clips of `prior_dataset` too",
    )
    min_crop_scale: float = option(
        1.0, "smallest share of each side in random crops of reference and target; 1 does not crop"
    )
    prior_dataset: str | None = option(
        None,
        "data set of other people, as for `--train_data` of train.py, so that the model does not forget them; rows"
        " that cannot be used are skipped",
    )
    prior_prob: float = option(0.25, "share of samples from `prior_dataset`, if one is given")
    num_textured_clips: int = option(
        0,
        "number of clips of `prior_dataset` in which the model moves the subject before training, from the first photo"
        " by name, with the texture of all photos where their UV meets; most targets are then frames of these clips",
    )
    num_cached_crops: int = option(
        64,
        "number of crops of each photo, and of samples from `prior_dataset`, that are encoded once before training, as"
        " are all textured clips; 0 encodes a new crop in each step",
    )
    gradient_checkpointing: bool = option(True, "recompute activations in the backward pass: less memory, slower")

    def __post_init__(self):
        check_choice(self, "person", PERSON_RULES)
        check_not_negative(self, "num_cached_crops", "num_textured_clips")
        check_limit(self, 10**6, "num_cached_crops", "num_textured_clips")
        check_size(self)
        check(self, "within [0, 1)", lambda value: 0 <= value < 1, "prior_prob")
        if self.num_textured_clips and self.prior_dataset is not None and self.fit != "whole":
            got = f"{self.num_textured_clips} with {self.fit}"
            raise ValueError(f"`num_textured_clips` must go with the `fit` whole, got {got}.")
        self.settings()

    def settings(self, pose_radius: int = 2, noise_offset: float = 0.0) -> PairSettings:
        """Return the settings that `training.subject.photos` takes."""
        names = ("reference_frames", "fit", "min_crop_scale")
        return PairSettings(pose_radius, noise_offset=noise_offset, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class LoraOptions:
    """LoRA: the weights to train."""

    train_mode: Literal["lora", "full"] = option(
        "lora", "train a LoRA, which is a small file, or all weights of UNet, adapter and VAE decoder"
    )
    rank: int = option(16, "rank of each LoRA layer")
    lora_alpha: int | None = option(None, "numerator of the LoRA's scale, `lora_alpha / rank`; by default the rank")
    use_rslora: bool = option(False, "use the scale `lora_alpha / sqrt(rank)` instead")
    use_dora: bool = option(False, "train the norms of the weights separately (DoRA)")
    lora_convolutions: bool = option(
        False, "adapt the UNet's convolutions in addition to its attention; 58 MB instead of 21 at full size"
    )
    lora_conv_in: bool = option(False, "adapt the UNet's first layer too, which reads the poses")
    quantize_base: bool = option(
        False, "store the UNet's frozen linear layers in 4 bit (NF4); this needs CUDA and bitsandbytes"
    )

    def __post_init__(self):
        check_choice(self, "train_mode", ("lora", "full"))
        # A rank above the smaller side of a weight has no use. That is at most 1280 in Stable Diffusion 1.x.
        check_counts(self, "rank", limit=1280)
        check_counts(self, "lora_alpha", limit=10**6)
        if self.quantize_base and self.train_mode == "full":
            raise ValueError("`quantize_base` must go with `train_mode` lora: 4-bit weights do not train, got full.")

    def config_arguments(self) -> dict[str, Any]:
        """Return the arguments for [`training.models.lora.build_lora_configs`]."""
        others = ("train_mode", "quantize_base")
        return {name: value for name, value in vars(self).items() if name not in others}


@dataclass(frozen=True)
class DecoderOptions:
    """Decoder: the second phase, which trains the VAE's decoder."""

    decoder_max_train_steps: int = option(100, "number of optimizer steps for the VAE decoder; 0 skips this phase")
    decoder_learning_rate: float = option(5e-5, "peak learning rate of the VAE decoder")

    def __post_init__(self):
        check_not_negative(self, "decoder_max_train_steps")
        check_limit(self, LARGEST, "decoder_max_train_steps")
        check_positive(self, "decoder_learning_rate")

    def loop_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for [`training.engine.loop.train`] that differ from the first phase."""
        return {"max_train_steps": self.decoder_max_train_steps, "learning_rate": self.decoder_learning_rate}


@dataclass(frozen=True)
class SubjectObjectiveOptions(ObjectiveOptions):
    """Objective: as in stage 1, but without conditioning dropout."""

    image_dropout_prob: float = option(0.0, "share of samples with the black picture in place of the photo")
    pose_dropout_prob: float = option(0.0, "share of samples without poses")
    joint_dropout_prob: float = option(0.0, "share of samples without photo and poses")


@dataclass(frozen=True)
class SubjectTrainOptions(TrainOptions):
    """Run: steps, checkpoints, logs, learning rate and optimizer."""

    max_train_steps: int | None = option(
        100, "number of optimizer steps for UNet and adapter, in place of `num_train_epochs`; 0 skips this phase"
    )
    train_batch_size: int = option(1, "samples per batch on each process; 1 needs the least memory")
    gradient_accumulation_steps: int = option(4, "batches per optimizer step")
    learning_rate: float = option(1e-4, "peak learning rate of UNet and adapter")


@dataclass(frozen=True)
class SubjectSampleOptions:
    """Pictures: the photos' poses rendered without and with the LoRA, in `before_after.png`."""

    sample_inference_steps: int = option(10, "denoising steps of these pictures; 0 draws none")
    hub_sample: bool = option(
        False, "show these pictures on the card and push them; use it only if the people shown agreed"
    )

    def __post_init__(self):
        check_not_negative(self, "sample_inference_steps")
        check_limit(self, 1000, "sample_inference_steps")
        if self.hub_sample and self.sample_inference_steps == 0:
            raise ValueError("`hub_sample` must go with `sample_inference_steps` above 0, got True with 0.")


METHOD_OPTIONS = (SubjectOptions, LoraOptions, DecoderOptions, SubjectObjectiveOptions, SubjectTrainOptions)
