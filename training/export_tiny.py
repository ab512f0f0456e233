# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Write the small model that ships with the project, in half precision, and the sample that the demo animates.

python training/export_tiny.py --pipeline runs/tiny/stage1 --runs runs/tiny
"""

import argparse
import json
import shutil
from pathlib import Path

from training.options.clips import check_ranges
from training.options.command import CommandParser, run_command


RUNS = ("vae", "image_encoder", "stage1")
CURVES = {
    "loss": "Loss",
    "validation/psnr": "PSNR of held-out frames, dB",
    "validation/ssim": "SSIM of held-out frames",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--pipeline", help="folder that stage 1 wrote; without it only the sample is written")
    add("--runs", type=Path, help="folder of the training runs, whose settings and logs are kept")
    add("--model_dir", type=Path, default=Path("model_card/tiny"), help="folder of the small model")
    add("--image_guidance_scale", type=float, help="default to store in the model; the present one if not given")
    add("--pose_guidance_scale", type=float, help="default to store in the model; the present one if not given")
    add("--sample_dir", type=Path, default=Path("model_card/sample"), help="folder of the sample")
    add("--subject", type=int, default=21, help="number of the sample's subject in the test split")
    add("--motion", type=int, default=57, help="number of the sample's motion in the test split")
    add("--num_frames", type=int, default=32, help="frames of the sample's motion")
    options = parser.parse_args(argv)
    check_ranges(options)
    return options


def export_pipeline(options: argparse.Namespace) -> None:
    """Save the pipeline in half precision with its default settings."""
    from training.hub.repositories import load_pipeline
    from training.models.base_pipeline import sampling_scheduler

    pipeline = load_pipeline(options.pipeline, dtype="float16")
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler)
    for name in ("image_guidance_scale", "pose_guidance_scale"):
        value = getattr(options, name)
        if value is not None:
            pipeline.register_to_config(**{f"default_{name}": value})
    pipeline.save_pretrained(options.model_dir)
    for path in options.model_dir.glob("*/config.json"):
        config = json.loads(path.read_text())
        if "dtype" in config:
            # transformers would load its model in half precision, while diffusers loads the others in float32.
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def export_training(runs: Path, folder: Path) -> None:
    """Copy the settings and log of each run, and draw the curves of stage 1."""
    from training.engine.run_log import LOG_NAME, read_log
    from training.media.charts import line_chart
    from training.media.pictures import picture_grid

    folder.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        shutil.copyfile(runs / name / "options.yaml", folder / f"{name}.yaml")
        shutil.copyfile(runs / name / LOG_NAME, folder / f"{name}.jsonl")
    records = read_log(runs / "stage1")
    charts = [
        line_chart({"stage 1": [(record["step"], record[value]) for record in records if value in record]}, title)
        for value, title in CURVES.items()
    ]
    picture_grid([charts]).save(folder / "curves.png", optimize=True)


def export_sample(options: argparse.Namespace) -> None:
    """Draw a held-out subject's photo, and the IUV pictures of another subject's held-out motion."""
    from PIL import Image

    from training.data.procedural_fashion import ProceduralFashionConfig
    from training.data.procedural_scene import render_clip

    config = ProceduralFashionConfig(name="sample", num_frames=options.num_frames)
    subject, motion = config.subject("test", options.subject), config.motion("test", options.motion)
    photo = config.clip("test", options.subject, options.subject, [0])[0]
    poses = options.sample_dir / "poses"
    poses.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.image).save(options.sample_dir / "photo.png")
    Image.fromarray(photo.iuv).save(options.sample_dir / "photo_iuv.png")  # stage 2 reads it
    for index, frame in enumerate(render_clip(subject, motion, config.height, config.width)):
        Image.fromarray(frame.iuv).save(poses / f"{index:04d}.png", optimize=True)


def main(options: argparse.Namespace) -> None:
    """Write the model, its training runs and the sample. No pose of a longer sample is deleted: it is refused."""
    from training.media.outputs import check_output

    check_output("model_dir", options.model_dir)
    check_output("sample_dir", options.sample_dir)
    names = {f"{index:04d}.png" for index in range(options.num_frames)}
    others = {path.name for path in options.sample_dir.glob("poses/*")} - names
    if others:
        raise ValueError(f"`sample_dir` must have no poses but those of this sample, got {sorted(others)[0]!r}.")
    if options.pipeline is not None:
        export_pipeline(options)
        print(f"Wrote {options.model_dir}.")
    if options.runs is not None:
        export_training(options.runs, options.model_dir / "training")
        print(f"Wrote {options.model_dir / 'training'}.")
    export_sample(options)
    print(f"Wrote {options.sample_dir}.")


if __name__ == "__main__":
    run_command(parse_args, main, "The same command writes everything again.")
