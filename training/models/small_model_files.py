# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Files of training runs that the small model's folder holds: settings, logs, curves, and the few-step LoRA."""

import shutil
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.engine.run_log import LOG_NAME, read_log
from training.media.charts import line_chart
from training.media.pictures import picture_grid
from training.models.lora import sort_metadata


RUNS = ("vae", "image_encoder", "stage1")
CURVES = {
    "loss": "Loss",
    "validation/psnr": "PSNR of held-out frames, dB",
    "validation/ssim": "SSIM of held-out frames",
}


def copy_run(run: Path, folder: Path, name: str) -> None:
    """Copy the settings and the log of a run into `folder`, as `NAME.yaml` and `NAME.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "options.yaml", folder / f"{name}.yaml")
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
    """Save the LoRA of a run in half precision, with its metadata.

    Raises:
        ValueError: If the run has written no LoRA.
    """
    source = run / LORA_WEIGHT_NAME_SAFE
    try:
        with safe_open(source, "pt") as file:
            weights = {name: file.get_tensor(name).half() for name in file.keys()}
            metadata = file.metadata()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"`few_steps` must be the folder of a finished LoRA, got {str(run)!r}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / LORA_WEIGHT_NAME_SAFE, metadata)
    sort_metadata(folder / LORA_WEIGHT_NAME_SAFE)
