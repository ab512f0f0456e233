# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Write the small model that ships with the project, in half precision, and the sample that the demo animates.

python training/export_tiny.py --pipeline runs/tiny/stage1 --vae runs/tiny/doubled_vae --runs runs/tiny
"""

import argparse
from pathlib import Path

from training.engine.messages import naming_arguments
from training.engine.output_lock import locks_output
from training.options.clips import check_ranges
from training.options.command import CommandParser, run_command


STORED_SCALES = ("image_guidance_scale", "pose_guidance_scale")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = CommandParser(usage="%(prog)s [--pipeline FOLDER] [--OPTION VALUE ...]", description=__doc__)
    add = parser.add_argument_group("model").add_argument
    add("--pipeline", metavar="FOLDER", help="folder that stage 1 wrote; without it, no model is written")
    add("--vae", metavar="FOLDER", help="folder of a doubled VAE of train_encoders.py, instead of the pipeline's")
    add("--runs", type=Path, help="folder of the training runs, whose settings and logs are copied")
    add("--few_steps", type=Path, help="folder that distill.py wrote; its LoRA goes to `fast` in `--model_dir`")
    add("--model_dir", type=Path, default=Path("model_card/tiny"), help="folder to write the small model to")
    for name in STORED_SCALES:
        add(f"--{name}", type=float, help="default to store in the model; without it, that of `--pipeline` stays")
    add = parser.add_argument_group("sample").add_argument
    add("--sample_dir", type=Path, default=Path("model_card/sample"), help="folder to write the sample to")
    add("--subject", type=int, default=21, help="number of the sample's subject in the test split")
    add("--motion", type=int, default=57, help="number of the sample's motion in the test split")
    add("--num_frames", type=int, default=32, help="frames of the sample's motion")
    options = parser.parse_args(argv)
    check_ranges(options)
    if options.model_dir == options.sample_dir:
        parser.error(f"`--sample_dir` must be another folder than `--model_dir`, got {str(options.sample_dir)!r}.")
    if options.pipeline is None:
        parser.refuse(argv, [*STORED_SCALES, "vae"], "only with `--pipeline`")
    if options.pipeline is None and options.runs is None and options.few_steps is None:
        parser.refuse(argv, ["model_dir"], "only with `--pipeline`, `--runs` or `--few_steps`")
    return options


def export_pipeline(options: argparse.Namespace) -> None:
    """Save the pipeline in half precision, with the given scales as its defaults and the given VAE."""
    from training.hub.repositories import load_pipeline
    from training.models.small_model import save_small_model, with_vae
    from training.models.small_model_files import copy_run

    with naming_arguments(model="pipeline"):
        pipeline = load_pipeline(options.pipeline, dtype="float16")
    if options.vae is not None:
        pipeline = with_vae(pipeline, options.vae)
        copy_run(Path(options.vae), options.model_dir / "training", "doubled_vae")
    given = {name: getattr(options, name) for name in STORED_SCALES if getattr(options, name) is not None}
    pipeline.register_to_config(**{f"default_{name}": value for name, value in given.items()})
    save_small_model(pipeline, options.model_dir)
    print(f"Wrote {options.model_dir}.")


@locks_output("model_dir", is_folder=True)
@locks_output("sample_dir", is_folder=True)
def main(options: argparse.Namespace) -> None:
    """Write the model, its training runs and the sample, after checking all that is read but the model.

    A folder with a longer sample is refused.
    """
    from training.data.procedural_sample import write_sample
    from training.hub.repositories import default_size
    from training.media.outputs import check_output
    from training.models.small_model_files import (
        RUNS,
        check_few_step_run,
        check_run,
        export_few_steps,
        export_training,
    )

    check_output("model_dir", options.model_dir)
    check_output("sample_dir", options.sample_dir)
    names = {f"{index:04d}.png" for index in range(options.num_frames)}
    others = {path.name for path in options.sample_dir.glob("poses/*")} - names
    if others:
        raise ValueError(f"`sample_dir` must have no poses but those of this sample, got {sorted(others)[0]!r}.")
    for name in RUNS if options.runs is not None else ():
        check_run("runs", options.runs / name)
    if options.vae is not None:
        check_run("vae", Path(options.vae), "config.json")
    if options.few_steps is not None:
        check_few_step_run(options.few_steps)
    if options.pipeline is not None:
        export_pipeline(options)
    if options.runs is not None:
        export_training(options.runs, options.model_dir / "training")
        print(f"Wrote {options.model_dir / 'training'}.")
    if options.few_steps is not None:
        export_few_steps(options.few_steps, options.model_dir)
        print(f"Wrote {options.model_dir / 'fast'}.")
    has_model = (options.model_dir / "model_index.json").is_file()
    size = dict(zip(("width", "height"), default_size(options.model_dir))) if has_model else {}
    write_sample(options.sample_dir, options.subject, options.motion, num_frames=options.num_frames, **size)
    print(f"Wrote {options.sample_dir}.")


if __name__ == "__main__":
    run_command(parse_args, main, "The same command writes everything again.")
