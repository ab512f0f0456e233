# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Files of training runs that the small model's folder holds: settings, logs, curves, and the few-step LoRA."""

import shutil
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors import safe_open
from safetensors.torch import save_file

from training.engine.messages import naming_arguments
from training.engine.run_log import LOG_NAME, read_log
from training.hub.loras import has_few_steps
from training.media.charts import line_chart
from training.media.pictures import picture_grid
from training.models.lora import sort_metadata


OPTIONS_NAME = "options.yaml"
RUNS = ("vae", "image_encoder", "stage1")
CURVES = {
    "loss": "Loss",
    "validation/psnr": "PSNR of held-out frames, dB",
    "validation/ssim": "SSIM of held-out frames",
}


def check_run(argument: str, run: Path, *names: str) -> None:
    """Raise a `ValueError` unless a folder has the files that [`copy_run`] reads, and those of these `names`."""
    for name in (*names, OPTIONS_NAME, LOG_NAME):
        if not (run / name).is_file():
            raise ValueError(f"`{argument}` must be the folder of a finished run, got {str(run)!r} without {name}.")


def check_few_step_run(run: Path) -> None:
    """Raise a `ValueError` unless a folder holds a few-step LoRA, and the settings and the log of its training."""
    check_run("few_steps", run, LORA_WEIGHT_NAME_SAFE)
    with naming_arguments(lora="few_steps"):
        is_few_step = has_few_steps(str(run / LORA_WEIGHT_NAME_SAFE))
    if not is_few_step:
        raise ValueError(
            f"`few_steps` must be the folder of a few-step LoRA, got {str(run)!r}, whose LoRA has no"
            " `dreampose.few_steps` in its metadata."
        )


def copy_run(run: Path, folder: Path, name: str) -> None:
    """Copy the settings and the log of a run into `folder`, as `NAME.yaml` and `NAME.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / OPTIONS_NAME, folder / f"{name}.yaml")
    shutil.copyfile(run / LOG_NAME, folder / f"{name}.jsonl")


def export_training(runs: Path, folder: Path) -> None:
    """Copy the settings and log of each run of the small model, and draw the curves of stage 1."""
    for name in RUNS:
        copy_run(runs / name, folder, name)
    records = read_log(runs / "stage1")
    curves = {title: [(r["step"], r[name]) for r in records if name in r] for name, title in CURVES.items()}
    charts = [line_chart({"stage 1": points}, title) for title, points in curves.items()]
    picture_grid([charts]).save(folder / "curves.png", optimize=True)


def save_small_lora(run: Path, folder: Path) -> None:
    """Save the few-step LoRA of a run in half precision, with its metadata.

    Raises:
        ValueError: See [`check_few_step_run`].
    """
    check_few_step_run(run)
    with safe_open(run / LORA_WEIGHT_NAME_SAFE, "pt") as file:
        weights = {name: file.get_tensor(name).half() for name in file.keys()}
        metadata = file.metadata()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / LORA_WEIGHT_NAME_SAFE, metadata)
    sort_metadata(folder / LORA_WEIGHT_NAME_SAFE)


def export_few_steps(run: Path, folder: Path) -> None:
    """Write a run's few-step LoRA into a model's folder, and copy the settings and the log of its training."""
    save_small_lora(run, folder / "fast")
    copy_run(run, folder / "training", "few_steps")
