# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 2 of DreamPose: one subject from its photos, as a LoRA of UNet, adapter and VAE decoder (arXiv:2304.06025).

accelerate launch training/finetune.py --pretrained_model_name_or_path MODEL --instance_data_dir PHOTOS
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from pipeline_dreampose import DreamPosePipeline
from training import options as groups
from training.data.frame_pairs import LatentShape
from training.data.pair_settings import PairSettings
from training.data.subject_photos import SubjectPairs, load_photos
from training.denoiser import load_subject_base
from training.hub import try_make_repo, try_push
from training.lora import build_lora_configs
from training.option_parsing import format_options, option_values, parse, save_options
from training.sample_options import SubjectSampleOptions
from training.samples import open_samples
from training.session import open_session
from training.subject import resume_points, train_subject
from training.subject_results import TITLE, write_subject


OPTIONS = (
    *(groups.SubjectOptions, groups.LoraOptions, groups.DecoderOptions, groups.SubjectObjectiveOptions),
    *(groups.SubjectTrainOptions, groups.HubOptions, SubjectSampleOptions),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """The option groups, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__)


def check(options: tuple) -> dict[str, Any]:
    """Refuse what cannot be run; returns the phases that are not skipped and where each goes on."""
    subject, lora, decoder, _, run, _, sample = options
    if subject.pretrained_model_name_or_path is None:
        raise ValueError("`pretrained_model_name_or_path` must be a DreamPose pipeline's folder or Hub id, got None.")
    if run.validation_steps is not None:
        raise ValueError(f"`validation_steps` must be none for a subject, got {run.validation_steps}.")
    if sample.hub_sample and lora.train_mode != "lora":
        raise ValueError(f"`hub_sample` must go with the `train_mode` lora, which alone draws, got {lora.train_mode}.")
    steps = {"denoiser": run.max_train_steps, "decoder": decoder.decoder_max_train_steps}
    phases = [phase for phase, num_steps in steps.items() if num_steps != 0]
    if not phases:
        raise ValueError("`max_train_steps` and `decoder_max_train_steps` must not both be 0, which trains nothing.")
    return resume_points(run.output_dir, run.resume_from_checkpoint, phases)


def open_pairs(pipeline: DreamPosePipeline, photos: datasets.Dataset, options: tuple) -> SubjectPairs:
    """The samples of both phases."""
    subject, _, _, objective, run, *_ = options
    shape = LatentShape.of(pipeline.vae, pipeline.config.default_height, pipeline.config.default_width)
    settings = subject.settings(pipeline.pose_radius, objective.noise_offset)
    prior = None
    if subject.prior_dataset is not None:
        whole = PairSettings(pipeline.pose_radius, fit=subject.fit, noise_offset=objective.noise_offset)
        prior = open_samples(subject.prior_dataset, shape, run.seed, whole)
    return SubjectPairs(photos, shape, run.seed, settings, prior, subject.prior_prob)


def main(options: tuple) -> None:
    """Load, train both phases, write the subject to `output_dir`, and push it if asked to."""
    subject, lora, decoder, objective, run, hub, sample = options
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
        if is_main:
            repo_id = repo_id or hub.hub_model_id
            num_steps = {phase: values["max_train_steps"] for phase, values in arguments.items()}
            facts = {
                "base_model": name,
                "revision": subject.revision,
                "rank": lora.rank,
                "lora_alpha": lora.lora_alpha,
            }
            facts |= {"seed": run.seed, "num_samples": run.global_batch_size(accelerator.num_processes)}
            facts |= {"repo_id": repo_id, "picture": hub.hub_picture, "license": hub.hub_license}
            facts |= {"options_yaml": format_options(*options), **vars(sample)}
            patterns = write_subject(folder, pipeline, layers, photos, num_steps, **facts)
            if hub.push_to_hub:
                try_push(folder, repo_id, private=hub.hub_private_repo, commit_message=TITLE, allow_patterns=patterns)


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"finetune.py: error: {error}") from None
