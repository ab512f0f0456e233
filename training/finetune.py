# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Stage 2 of DreamPose: train a LoRA of UNet, adapter and VAE decoder on photos of one subject (arXiv:2304.06025).

python training/finetune.py --pretrained_model_name_or_path MODEL --instance_data_dir PHOTOS --output_dir OUTPUT
accelerate launch --multi_gpu --num_processes 4 training/finetune.py ...    # on 4 GPUs
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.options import subject as groups
from training.options.command import CHECKPOINTS_KEPT, run_command
from training.options.parsing import format_options, option_values, parse, save_options
from training.options.run import HubOptions


OPTIONS = (*groups.METHOD_OPTIONS, HubOptions, groups.SubjectSampleOptions)
MOST_USED = (
    *("pretrained_model_name_or_path", "instance_data_dir", "output_dir", "densepose", "max_train_steps"),
    *("learning_rate", "rank", "train_mode", "resume_from_checkpoint", "push_to_hub"),
)


def parse_args(argv: Sequence[str] | None = None) -> tuple:
    """Return the option groups of a command line, in the order of `OPTIONS`."""
    return parse(OPTIONS, argv, description=__doc__, presets="finetune", first=MOST_USED)


def check(options: tuple) -> dict[str, Any]:
    """Check options that depend on each other; return the phases that are not skipped and where each resumes."""
    from training.media.pictures import spare_inputs
    from training.subject.phases import resume_points, trained_phases
    from training.subject.photos import find_photos, load_photos

    subject, lora, decoder, _, run, hub, sample = options
    if subject.pretrained_model_name_or_path is None:
        raise ValueError(
            "`pretrained_model_name_or_path` is missing: give the folder or Hub id of a DreamPose pipeline."
        )
    if sample.hub_sample and lora.train_mode != "lora":
        raise ValueError(f"`hub_sample` must go with the `train_mode` lora, which alone draws, got {lora.train_mode}.")
    if sample.hub_sample and hub.hub_picture is not None:
        raise ValueError(f"`hub_sample` must go without `hub_picture`, which takes its place, got {hub.hub_picture}.")
    phases = trained_phases(run.max_train_steps, decoder.decoder_max_train_steps)
    # With DensePose, IUV pictures may be missing.
    (load_photos if subject.densepose is None else find_photos)(subject.instance_data_dir)
    read = [subject.pretrained_model_name_or_path, subject.instance_data_dir, subject.prior_dataset]
    spare_inputs("output_dir", [run.output_dir], read)
    return resume_points(run.output_dir, run.resume_from_checkpoint, phases)


def main(options: tuple) -> None:
    """Load the model, train both phases, write the subject to `output_dir`, and push it if asked to."""
    from training.engine.checkpoints import starting_state
    from training.engine.precision import weight_dtype
    from training.engine.session import open_session
    from training.hub.repositories import find_commit, try_make_repo, try_push
    from training.models.base_pipeline import four_bit_arguments, load_subject_base
    from training.models.lora import build_lora_configs
    from training.subject.phases import PHASES, phase_arguments, train_subject
    from training.subject.photos import find_photos, open_pairs, open_photos
    from training.subject.results import TITLE, write_subject
    from training.subject.summary import next_command, summarize_run

    subject, lora, decoder, objective, run, hub, sample = options
    points, folder, name = check(options), Path(run.output_dir), subject.pretrained_model_name_or_path
    # In the trackers one phase begins where the other ends.
    limits = dict(zip(PHASES, (run.max_train_steps, decoder.decoder_max_train_steps)))
    steps = [starting_state(folder / phase, point, limits[phase])["global_step"] for phase, point in points.items()]
    session = {"first_step": sum(steps), "quantize_base": lora.quantize_base, **run.session_arguments()}
    with open_session(settings=option_values(*options), **session) as accelerator:
        photos = open_photos(accelerator, subject.instance_data_dir, subject.densepose, subject.person)
        is_main = accelerator.is_main_process
        if is_main:
            print(f"All options are in {save_options(folder, *options)}.")
        repo_id = try_make_repo(hub.hub_model_id, hub.hub_private_repo) if hub.push_to_hub and is_main else None
        loading = four_bit_arguments(weight_dtype(accelerator)) if lora.quantize_base else {}
        pipeline = load_subject_base(name, subject.revision, subject.height, subject.width, **loading)
        commit = find_commit(name, subject.revision)  # before another process may fetch a newer one
        pipeline.to(accelerator.device)
        for model in (pipeline.unet, pipeline.vae) if subject.gradient_checkpointing else ():
            model.enable_gradient_checkpointing()
        settings = subject.settings(pipeline.pose_radius, objective.noise_offset)
        samples = open_pairs(pipeline, photos, run.seed, settings, subject.prior_dataset, subject.prior_prob)
        common = run.loop_arguments(len(samples), accelerator.num_processes)
        arguments = phase_arguments(folder, points, common, decoder.loop_arguments())
        files, batch_size = find_photos(subject.instance_data_dir), run.global_batch_size(accelerator.num_processes)
        if is_main:
            print(*summarize_run(pipeline, files, arguments, batch_size, vars(subject) | vars(run)), sep="\n")
        configs = build_lora_configs(**lora.config_arguments()) if lora.train_mode == "lora" else None
        special = (objective.loss_arguments(), run.channels_last, subject.num_cached_crops, subject.num_textured_clips)
        layers = train_subject(accelerator, pipeline, samples, arguments, configs, *special)
        if is_main:
            num_steps = {phase: values["max_train_steps"] for phase, values in arguments.items()}
            facts = {"base_model": name, "revision": commit, "rank": lora.rank, "lora_alpha": lora.lora_alpha}
            facts |= {"seed": run.seed, "num_samples": batch_size, "repo_id": repo_id or hub.hub_model_id}
            facts |= {"picture": hub.hub_picture, "license": hub.hub_license, "options_yaml": format_options(*options)}
            facts |= {"prior_dataset": subject.prior_dataset, "prior_prob": subject.prior_prob, **vars(sample)}
            patterns = write_subject(folder, pipeline, layers, photos, num_steps, **facts)
            if hub.push_to_hub:
                how = {"private": hub.hub_private_repo, "commit_message": TITLE, "allow_patterns": patterns}
                try_push(folder, facts["repo_id"], **how)
            print(f"Next: {next_command(folder, name, files[0], bool(layers))}")


if __name__ == "__main__":
    run_command(parse_args, main, CHECKPOINTS_KEPT)
