# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 2 of DreamPose: one subject from its photos, as a LoRA of UNet, adapter and VAE decoder (arXiv:2304.06025).

accelerate launch training/finetune.py --pretrained_model_name_or_path MODEL --instance_data_dir PHOTOS
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from pipeline_dreampose import DreamPosePipeline
from training import subject_options as groups
from training.data.frame_pairs import LatentShape
from training.data.pair_settings import PairSettings
from training.data.subject_photos import SubjectPairs, load_photos
from training.denoiser import load_subject_base
from training.hub import try_make_repo, try_push
from training.lora import build_lora_configs
from training.model_card import find_hub_id
from training.option_parsing import option_values, parse, save_options
from training.options import HubOptions
from training.samples import open_samples
from training.session import open_session
from training.subject import resume_points, train_subject


OPTIONS = (
    *(groups.SubjectOptions, groups.LoraOptions, groups.DecoderOptions, groups.SubjectObjectiveOptions),
    *(groups.SubjectTrainOptions, HubOptions),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """The option groups, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__)


def check(options: tuple) -> dict[str, Any]:
    """Refuse what cannot be run; returns the phases that are not skipped and where each goes on."""
    subject, _, decoder, _, run, hub = options
    if subject.pretrained_model_name_or_path is None:
        raise ValueError("`pretrained_model_name_or_path` must be a DreamPose pipeline's folder or Hub id, got None.")
    for name, value in (("validation_steps", run.validation_steps), ("hub_picture", hub.hub_picture)):
        if value is not None:
            raise ValueError(f"`{name}` must be none for a subject, got {value!r}.")
    steps = {"denoiser": run.max_train_steps, "decoder": decoder.decoder_max_train_steps}
    phases = [phase for phase, num_steps in steps.items() if num_steps != 0]
    if not phases:
        raise ValueError("`max_train_steps` and `decoder_max_train_steps` must not both be 0, which trains nothing.")
    return resume_points(run.output_dir, run.resume_from_checkpoint, phases)


def open_pairs(pipeline: DreamPosePipeline, photos: datasets.Dataset, options: tuple) -> SubjectPairs:
    """The samples of both phases."""
    subject, _, _, objective, run, _ = options
    shape = LatentShape.of(pipeline.vae, pipeline.config.default_height, pipeline.config.default_width)
    settings = subject.settings(pipeline.pose_radius, objective.noise_offset)
    prior = None
    if subject.prior_dataset is not None:
        whole = PairSettings(pipeline.pose_radius, fit=subject.fit, noise_offset=objective.noise_offset)
        prior = open_samples(subject.prior_dataset, shape, run.seed, whole)
    return SubjectPairs(photos, shape, run.seed, settings, prior, subject.prior_prob)


def main(options: tuple) -> None:
    """Load, train both phases, write the subject to `output_dir`, and push it if asked to."""
    subject, lora, decoder, objective, run, hub = options
    points, photos = check(options), load_photos(subject.instance_data_dir)
    folder, name = Path(run.output_dir), subject.pretrained_model_name_or_path
    with open_session(settings=option_values(*options), **run.session_arguments()) as accelerator:
        is_main = accelerator.is_main_process
        if is_main:
            print(save_options(folder, *options).read_text())
        repo_id = try_make_repo(hub.hub_model_id, hub.hub_private_repo) if hub.push_to_hub and is_main else None
        pipeline = load_subject_base(name, subject.revision, subject.height, subject.width).to(accelerator.device)
        if subject.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
            pipeline.vae.enable_gradient_checkpointing()
        samples = open_pairs(pipeline, photos, options)
        common = run.loop_arguments(len(samples), accelerator.num_processes)
        special = {"denoiser": {}, "decoder": decoder.loop_arguments()}
        arguments = {
            phase: common | special[phase] | {"output_dir": folder / phase, "resume_from_checkpoint": point}
            for phase, point in points.items()
        }
        configs = build_lora_configs(**lora.config_arguments()) if lora.train_mode == "lora" else None
        layers = train_subject(
            accelerator, pipeline, samples, arguments, configs, objective.loss_arguments(), run.channels_last
        )
        if is_main and configs is None:
            pipeline.save_pretrained(folder)
        elif is_main:
            facts = {"base_model": find_hub_id(name), "revision": subject.revision, "num_photos": len(photos)}
            facts |= {"rank": lora.rank, "lora_alpha": lora.lora_alpha or lora.rank}
            facts |= {f"num_{phase}_steps": values["max_train_steps"] for phase, values in arguments.items()}
            facts = {fact: value for fact, value in facts.items() if value is not None}
            DreamPosePipeline.save_lora_weights(folder, **layers, run_metadata=facts)
        if is_main:
            print(f"Wrote the subject to {folder}.")
        if is_main and hub.push_to_hub:
            patterns = None if configs is None else [LORA_WEIGHT_NAME_SAFE]
            how = {"private": hub.hub_private_repo, "commit_message": "Upload a DreamPose subject"}
            try_push(folder, repo_id or hub.hub_model_id, allow_patterns=patterns, **how)


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"finetune.py: error: {error}") from None
