# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Figures of an evaluation: metrics with their meaning, means over clips with standard errors, and tables."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline_dreampose import DreamPosePipeline
from training.engine.messages import markdown_text
from training.metrics.baselines import ROWS
from training.metrics.frames import frechet_distance, mean_and_standard_error


@dataclass(frozen=True)
class Metric:
    """How to show a metric: number of digits, whether higher is better, and its meaning in one line."""

    digits: int
    is_higher_better: bool
    meaning: str


SETS = "; it has no standard error, and only sets of one size can be compared"
METRICS = {
    "psnr": Metric(2, True, "peak signal-to-noise ratio in dB"),
    "ssim": Metric(3, True, "structural similarity, at most 1"),
    "l1": Metric(3, False, "mean absolute error of values in [0, 1]"),
    "foreground_psnr": Metric(2, True, "PSNR of the pixels of the person"),
    "silhouette_iou": Metric(3, True, "overlap of the person's outline with the true one, at most 1"),
    "cloth_psnr": Metric(2, True, "PSNR of loose skirts"),
    "seen_l1": Metric(3, False, "L1 of the body that the reference shows too"),
    "unseen_l1": Metric(3, False, "L1 of the body that the reference does not show, where that is at least 5 % of it"),
    "cloth_l1": Metric(3, False, "L1 of loose skirts"),
    "hem_l1": Metric(3, False, "L1 of loose skirts beyond the body, where no UV reaches"),
    "hair_l1": Metric(3, False, "L1 of loose hair"),
    "temporal_error": Metric(4, False, "mean absolute error of the change from one frame to the next"),
    "flicker": Metric(4, False, "mean absolute second difference in time of the static background"),
    "identity_distance": Metric(3, False, "distance between CLIP image features of prediction and truth, at most 2"),
    "lpips": Metric(3, False, "learned perceptual distance (AlexNet)"),
    "fid": Metric(2, False, f"Fréchet distance of Inception features over all frames{SETS}"),
    "fvd_16f": Metric(1, False, f"Fréchet distance of I3D features of 16 frames over all clips{SETS}"),
}
TABLES = {
    "Whole frames": ("psnr", "ssim", "l1", "foreground_psnr", "silhouette_iou", "cloth_psnr"),
    "Parts of frames": ("seen_l1", "unseen_l1", "cloth_l1", "hem_l1", "hair_l1"),
    "Time": ("temporal_error", "flicker"),
    "Learned metrics": ("identity_distance", "lpips", "fid", "fvd_16f"),
}
Figures = dict[str, dict[str, dict]]  # by row and metric: `mean`, `standard_error`, `n`
LIBRARIES = ("torch", "diffusers", "transformers", "datasets", "torchmetrics", "numpy", "pillow")


def summarize(values: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Figures]:
    """Average the figures of each clip; rows and metrics that some clip lacks are left out.

    Returns:
        `dict`: `{"rows": ..., "model_minus_row": ...}`, each with the mean over clips, its standard error and the
            number of clips by row and metric. Differences are taken clip by clip.
    """
    tensors = {
        row: {
            name: torch.tensor([clip[row][name] for clip in values])
            for name in METRICS
            if all(name in clip[row] for clip in values)
        }
        for row in ROWS
        if all(row in clip for clip in values)
    }
    summary, model = mean_and_standard_error, tensors["model"]
    return {
        "rows": {row: {m: summary(v) for m, v in by_metric.items()} for row, by_metric in tensors.items()},
        "model_minus_row": {
            row: {m: summary(model[m] - v) for m, v in by_metric.items() if m in model}
            for row, by_metric in tensors.items()
            if row != "model"
        },
    }


def add_set_distances(rows: Figures, features: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Add FID and FVD to the rows of [`summarize`], in place, unless a set has one member; their `n` counts members.

    `features` holds the existing features `[N, D]` by metric and set: the predictions in `ROWS`, `true own` and
    `true other`.
    """
    for name, by_set in features.items():
        for row, by_metric in rows.items():
            prediction, truth = ROWS[row]
            if f"true {truth}" in by_set and len(by_set.get(prediction, ())) > 1:
                distance = frechet_distance(by_set[prediction], by_set[f"true {truth}"])
                n = len(by_set[prediction])
                by_metric[name] = {"mean": distance.item(), "standard_error": None, "n": n}


def explain_missing(rows: Figures, notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes of `LearnedMetrics`, and why rows, distances between sets or standard errors are missing."""
    reasons = {"own": "needs a second clip in the split", "other": "needs another subject in the same motion"}
    found = dict(notes)
    for name in ("fid", "fvd_16f"):
        if notes.get(name, "").startswith("by ") and name not in rows["model"]:
            found[name] = "left out: needs sets of at least two pictures or videos"
    found |= {row: f"left out: {reasons[truth]}" for row, (_, truth) in ROWS.items() if row not in rows}
    if rows["model"]["psnr"]["n"] == 1:
        found["standard error"] = "left out: needs a second clip"
    return found


def format_figure(name: str, figure: Mapping | None) -> str:
    """Format `mean ± standard error` with the metric's digits; return an empty string without a figure."""
    if figure is None or figure["mean"] is None:
        return ""
    parts = [figure["mean"]] + ([] if figure["standard_error"] is None else [figure["standard_error"]])
    return " ± ".join(f"{value:.{METRICS[name].digits}f}" for value in parts)


def table_cells(rows: Figures, names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the metrics of `names` that some row has, and by row their figures as text, without empty rows."""
    names = [name for name in names if any(format_figure(name, by_metric.get(name)) for by_metric in rows.values())]
    cells = {row: [format_figure(name, by_metric.get(name)) for name in names] for row, by_metric in rows.items()}
    return names, {row: texts for row, texts in cells.items() if any(texts)}


def markdown_table(rows: Figures, names: Sequence[str] = TABLES["Whole frames"]) -> str:
    """Format rows of [`summarize`] as a Markdown table of the metrics `names`; return "" without figures."""
    names, cells = table_cells(rows, names)
    if not names:
        return ""
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {markdown_text(row)} | " + " | ".join(texts) + " |" for row, texts in cells.items()]
    return "\n".join(lines) + "\n"


def markdown_tables(rows: Figures, notes: Mapping[str, str]) -> str:
    """Format all `TABLES` that have figures, with the notes of `LearnedMetrics` below."""
    tables = [table for names in TABLES.values() if (table := markdown_table(rows, names))]
    lines = [f"- {name.replace('_', ' ')}: {markdown_text(note)}" for name, note in notes.items()]
    return "\n".join([*tables, *lines]) + "\n"


def describe_pipeline(pipe: DreamPosePipeline) -> dict[str, Any]:
    """Describe what the figures depend on besides the options: model defaults, scheduler, versions and machine."""
    defaults = ["width", "height", "num_inference_steps", "image_guidance_scale", "pose_guidance_scale"]
    defaults += ["guidance_stop"]
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in cpu_info if line.startswith("model name")]
    return {
        "model_defaults": {name: pipe.config.get(f"default_{name}") for name in defaults},
        "scheduler": type(pipe.scheduler).__name__,
        "versions": {name: version(name) for name in LIBRARIES},
        "machine": {
            "cpu": names[0] if names else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.system(),
            "python": platform.python_version(),
        },
    }
