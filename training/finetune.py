# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 2 of DreamPose: one subject from its photos, as a LoRA of UNet, adapter and VAE decoder (arXiv:2304.06025).

accelerate launch training/finetune.py --pretrained_model_name_or_path MODEL --instance_data_dir PHOTOS
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from pipeline_dreampose import DreamPosePipeline
from training import subject_options as groups
from training.denoiser import load_subject_base
from training.hub import try_make_repo, try_push
from training.lora import build_lora_configs
from training.model_card import find_hub_id
from training.option_parsing import option_values, parse, save_options
from training.options import HubOptions
from training.precision import weight_dtype
from training.quantization import check_quantizable, four_bit_arguments
from training.session import open_session
from training.subject import phase_arguments, resume_points, train_subject
from training.subject_samples import check_photos, open_pairs, open_photos


OPTIONS = (
    *(groups.SubjectOptions, groups.LoraOptions, groups.DecoderOptions, groups.SubjectObjectiveOptions),
    *(groups.SubjectTrainOptions, HubOptions),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """The option groups, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__)


def check(options: tuple) -> dict[str, Any]:
    """Refuse what cannot be run; returns the phases that are not skipped and where each goes on."""
    subject, lora, decoder, _, run, hub = options
    if subject.pretrained_model_name_or_path is None:
        raise ValueError("`pretrained_model_name_or_path` must be a DreamPose pipeline's folder or Hub id, got None.")
    for name, value in (("validation_steps", run.validation_steps), ("hub_picture", hub.hub_picture)):
        if value is not None:
            raise ValueError(f"`{name}` must be none for a subject, got {value!r}.")
    steps = {"denoiser": run.max_train_steps, "decoder": decoder.decoder_max_train_steps}
    phases = [phase for phase, num_steps in steps.items() if num_steps != 0]
    if not phases:
        raise ValueError("`max_train_steps` and `decoder_max_train_steps` must not both be 0, which trains nothing.")
    if lora.quantize_base:
        check_quantizable()
    check_photos(subject.instance_data_dir, subject.densepose)
    return resume_points(run.output_dir, run.resume_from_checkpoint, phases)


def main(options: tuple) -> None:
    """Load, train both phases, write the subject to `output_dir`, and push it if asked to."""
    subject, lora, decoder, objective, run, hub = options
    points, folder, name = check(options), Path(run.output_dir), subject.pretrained_model_name_or_path
    with open_session(settings=option_values(*options), **run.session_arguments()) as accelerator:
        photos = open_photos(accelerator, subject.instance_data_dir, subject.densepose, subject.person)
        is_main = accelerator.is_main_process
        if is_main:
            print(save_options(folder, *options).read_text())
        repo_id = try_make_repo(hub.hub_model_id, hub.hub_private_repo) if hub.push_to_hub and is_main else None
        loading = four_bit_arguments(weight_dtype(accelerator)) if lora.quantize_base else {}
        pipeline = load_subject_base(name, subject.revision, subject.height, subject.width, **loading)
        pipeline.to(accelerator.device)
        if subject.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
            pipeline.vae.enable_gradient_checkpointing()
        settings = subject.settings(pipeline.pose_radius, objective.noise_offset)
        samples = open_pairs(pipeline, photos, run.seed, settings, subject.prior_dataset, subject.prior_prob)
        common = run.loop_arguments(len(samples), accelerator.num_processes)
        arguments = phase_arguments(folder, points, common, decoder.loop_arguments())
        configs = build_lora_configs(**lora.config_arguments()) if lora.train_mode == "lora" else None
        special = (objective.loss_arguments(), run.channels_last, subject.num_cached_crops)
        layers = train_subject(accelerator, pipeline, samples, arguments, configs, *special)
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
