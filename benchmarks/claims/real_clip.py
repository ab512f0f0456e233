# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Train on one real clip with its DensePose output, and measure the end of the clip, which no training saw.

The project's own commands prepare the data set, continue stage 1 from the small model, train stage 2 on one frame and
on four, and evaluate. A stopped run continues when it is started again; other settings need another `--work_dir`.

    make runs/prior/train.parquet
    python -m benchmarks.claims.real_clip --data DIR

DIR holds `frames/NUMBER.png` and `iuv/NUMBER.png`. Pictures stay in the work folder.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from benchmarks.scripts import machine_facts, package_versions, parse_benchmark, run_script
from training.data.samples import load_prepared
from training.media.pictures import picture_grid
from training.media.settings_file import write_json
from training.options.command import CommandParser


METRICS = ("psnr", "ssim", "foreground_psnr")
CONFIG = Path(__file__).with_suffix(".yaml")  # of stage 1
STAGE_TWO = "--preset tiny --resume_from_checkpoint latest".split()
PRIOR = "--prior_prob 0.75 --num_textured_clips".split()
WITH_PRIOR = {", with prior": [*PRIOR, "0"], ", with prior and textured clips": [*PRIOR, "8"]}
NUM_PHOTOS = {"one photo": 1, "four photos": 4}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--data", required=True, type=Path, help="folder with `frames` and `iuv`, the pictures of one clip")
    add("--square_pixels", default="3:4", help="proportion of the true pictures, for frames that were squeezed")
    add("--model", type=Path, default=Path("model_card/tiny"), help="pipeline folder to start from")
    add("--drawn", type=Path, default=Path("runs/prior"), help="drawn people: the small model's data for stage 2")
    add("--work_dir", type=Path, default=Path("runs/real_clip"), help="folder for data set, models and pictures")
    return parse_benchmark(parser, argv, "benchmarks/claims/real_clip.json")


def run(command: str, *words: str | Path | float) -> None:
    """Run a command of the project."""
    subprocess.run([sys.executable, "-m", f"training.{command}", *map(str, words)], check=True)


def prepare(options: argparse.Namespace) -> Path:
    """Make the data set, whose `test` is the last fifth of the clip; return the folder of its rows."""
    folder = options.work_dir
    for name in ("frames", "iuv"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name / "clip").exists():
            (folder / name / "clip").symlink_to((options.data / name).resolve(), target_is_directory=True)
    words = ["--frames_dir", folder / "frames", "--iuv_dir", folder / "iuv", "--output_dir", folder / "set"]
    run("prepare_dataset", *words, "--holdout_frames", 0.2, "--square_pixels", options.square_pixels)
    return folder / "set" / "frames"


def write_photos(rows_dir: Path, folder: Path, number: int) -> Path:
    """Write some frames of the training set, evenly spaced from the first, as stage 2's photos."""
    rows = load_prepared(str(rows_dir), "train")
    folder.mkdir(parents=True, exist_ok=True)
    for row in (rows[round(i * (len(rows) - 1) / max(number - 1, 1))] for i in range(number)):
        row["image"].convert("RGB").save(folder / f"{row['frame_index']:06d}.png")
        row["iuv"].save(folder / f"{row['frame_index']:06d}_iuv.png")
    return folder


def evaluate(folder: Path, name: str, model: Path, lora: Path | None = None) -> dict:
    """Measure the end of the clip, from the clip's first frame as the photo; return `evaluation.json`."""
    output = folder / "evaluation" / name
    words = ["--model", model, "--dataset", folder / "set" / "frames", "--split", "test", "--photo_split", "train"]
    words += ["--num_clips", 1, "--frames_per_clip", 12, "--device", "cpu", "--output", output, "--overwrite"]
    if not (output / "evaluation.json").exists():
        run("evaluation", *words, *(["--lora", lora] if lora else []))
    return json.loads((output / "evaluation.json").read_text())


def main(options: argparse.Namespace) -> dict:
    """Run the whole road, and write figures and settings. Raise a `ValueError` if one of the folders is missing."""
    for folder in (options.data / "frames", options.data / "iuv", options.drawn, options.model):
        if not folder.is_dir():
            raise ValueError(f"`data`, `drawn` and `model` must be there, got {str(folder)!r}, which is no folder.")
    folder, rows, stage_one = options.work_dir, prepare(options), options.work_dir / "stage1"
    words = ["--pretrained_model_name_or_path", options.model, "--train_data", rows, "--output_dir", stage_one]
    run("train", *words, "--latent_cache_dir", folder / "latents", "--config", CONFIG)
    starts = {"stage 1": (stage_one, rows), "small model": (options.model, options.drawn)}
    results = {start: evaluate(folder, start, base) for start, (base, _) in starts.items()}
    for start, photos, others in itertools.product(starts, NUM_PHOTOS, ("", *WITH_PRIOR)):
        (base, prior), name = starts[start], f"{start}, stage 2 of {photos}{others}"
        words = ["--pretrained_model_name_or_path", base, "--output_dir", folder / "stage2" / name, *STAGE_TWO]
        words += ["--instance_data_dir", write_photos(rows, folder / photos, NUM_PHOTOS[photos])]
        words += ["--prior_dataset", prior, *WITH_PRIOR[others]] if others else []
        run("finetune", *words)
        results[name] = evaluate(folder, name, base, folder / "stage2" / name)
    pictures = [Image.open(folder / "evaluation" / name / "evaluation.png") for name in results]
    picture_grid([[picture] for picture in pictures], row_titles=list(results)).save(folder / "strip.png")
    baselines = {"copied photo": "copy of the reference", "small model's VAE": "VAE round trip"}
    figures = {name: results["small model"]["rows"][row] for name, row in baselines.items()}
    figures |= {name: result["rows"]["model"] for name, result in results.items()}
    digest = {"digest": results["small model"]["settings"]["digest"]}  # of the model that was measured
    report = {
        "figures": {name: {m: round(row[m]["mean"], 3) for m in METRICS} for name, row in figures.items()},
        "settings": {"stage 1": CONFIG.name, "stage 2": STAGE_TWO, "with prior": WITH_PRIOR} | digest,
        "machine": machine_facts("processor", "cores") | package_versions("torch", "diffusers"),
    }
    write_json(options.output, report)
    print(json.dumps(report["figures"], indent=2))
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
