# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Ship the embedded default: a trained small pipeline in half precision, and the sample that the demo animates.

python training/export_tiny.py --pipeline runs/tiny/stage1 --runs runs/tiny
"""

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image

from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import render_clip
from training.engine.run_log import LOG_NAME, read_log
from training.hub.repositories import load_pipeline
from training.media.charts import line_chart
from training.media.pictures import picture_grid
from training.models.base_pipeline import sampling_scheduler


RUNS = ("vae", "image_encoder", "stage1")
CURVES = {
    "loss": "Loss",
    "validation/psnr": "PSNR of held-out frames, dB",
    "validation/ssim": "SSIM of held-out frames",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ship a trained small pipeline and the demo's sample.")
    parser.add_argument("--pipeline", help="folder that stage 1 wrote; without it only the sample is written")
    parser.add_argument("--runs", type=Path, help="folder of the runs behind it, whose settings and logs are kept")
    parser.add_argument("--model_dir", type=Path, default=Path("model_card/tiny"))
    parser.add_argument("--image_guidance_scale", type=float, help="stored default (default: as it is)")
    parser.add_argument("--pose_guidance_scale", type=float, help="stored default (default: as it is)")
    parser.add_argument("--sample_dir", type=Path, default=Path("model_card/sample"))
    parser.add_argument("--subject", type=int, default=21, help="number of the sample's subject in the test split")
    parser.add_argument("--motion", type=int, default=57, help="number of the sample's motion in the test split")
    parser.add_argument("--num_frames", type=int, default=32, help="frames of the sample's motion")
    return parser.parse_args(argv)


def export_pipeline(options: argparse.Namespace) -> None:
    """Save the pipeline in half precision, its defaults set."""
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
            # transformers would load its part in half precision, diffusers loads all others in float32.
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def export_training(runs: Path, folder: Path) -> None:
    """Keep settings and log of each run, and draw the curves of stage 1."""
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
    """Draw a held-out subject's photo, and the IUV of a held-out motion that is not its own."""
    config = ProceduralFashionConfig(name="sample", num_frames=options.num_frames)
    subject, motion = config.subject("test", options.subject), config.motion("test", options.motion)
    photo = config.clip("test", options.subject, options.subject, [0])[0]
    poses = options.sample_dir / "poses"
    shutil.rmtree(poses, ignore_errors=True)
    poses.mkdir(parents=True)
    Image.fromarray(photo.image).save(options.sample_dir / "photo.png")
    Image.fromarray(photo.iuv).save(options.sample_dir / "photo_iuv.png")  # as stage 2 takes it
    for index, frame in enumerate(render_clip(subject, motion, config.height, config.width)):
        Image.fromarray(frame.iuv).save(poses / f"{index:04d}.png", optimize=True)


def main(options: argparse.Namespace) -> None:
    if options.pipeline is not None:
        export_pipeline(options)
        print(f"Wrote {options.model_dir}.")
    if options.runs is not None:
        export_training(options.runs, options.model_dir / "training")
        print(f"Wrote {options.model_dir / 'training'}.")
    export_sample(options)
    print(f"Wrote {options.sample_dir}.")


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"export_tiny.py: error: {error}") from None
