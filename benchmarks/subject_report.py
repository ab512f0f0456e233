# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Trials of stage 2 run side by side, kept one by one, and put together: gains over the model before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.kept_jobs import run_missing
from benchmarks.subject_trials import RECORDS_VERSION, Trial, run_trial
from training.charts import line_chart
from training.metrics import mean_and_standard_error
from training.pictures import picture_grid
from training.settings_file import write_json


METRICS = ("psnr", "ssim", "l1", "foreground_psnr", "silhouette_iou", "cloth_psnr")
GROUPS = ("all", "back", "still_window", "photos", "vae_round_trip")


def trial_path(trial: Trial, work_dir: Path) -> Path:
    """Where a trial's records are kept: trials of other settings, weights or drawings have other names."""
    text = json.dumps([RECORDS_VERSION, asdict(trial)], sort_keys=True)
    return work_dir / f"{trial.split}-{trial.index:03d}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _run(trial: Trial) -> dict[str, Any]:
    return {"trial": asdict(trial), "records": run_trial(trial)}


def run_all(trials: Sequence[Trial], work_dir: Path, num_processes: int) -> list[list[dict]]:
    """The records of all trials, of which those that are missing are run.

    Args:
        trials (`Sequence[Trial]`): What to do.
        work_dir (`Path`): Has a file for each trial that is through.
        num_processes (`int`): Trials at a time.
    Returns:
        `list[list[dict]]`: In the order of `trials`.
    """
    jobs = {trial_path(trial, work_dir): (trial,) for trial in trials}
    return [result["records"] for result in run_missing(_run, jobs, num_processes)]


def summarize(results: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict]:
    """Figures and their gains at each measured step, over subjects.

    Args:
        results (`Sequence`): Records of each subject, as `run_trial` returns them.
    Returns:
        `list[dict]`: For each phase and step: `figures` and `gains` (over the same subject before) by group and
            metric, each with mean, standard error and number; `improved`, how many subjects gained; and the gains of
            each subject.
    """
    rows = []
    for records in zip(*results, strict=True):
        row = {"phase": records[0]["phase"], "step": records[0]["step"]}
        for name in ("figures", "gains", "improved", "gain_by_subject"):
            row[name] = {}
        for group in GROUPS:
            values = {m: _values(records, group, m) for m in METRICS}
            before = {m: _values([result[0] for result in results], group, m) for m in METRICS}
            gains = {m: values[m] - before[m] for m in METRICS}
            row["figures"][group] = {m: mean_and_standard_error(v) for m, v in values.items()}
            row["gains"][group] = {m: mean_and_standard_error(v) for m, v in gains.items()}
            better = {m: -v if m == "l1" else v for m, v in gains.items()}
            row["improved"][group] = {m: int((v > 0).sum()) for m, v in better.items()}
            row["gain_by_subject"][group] = {m: [round(x, 4) for x in v.tolist()] for m, v in gains.items()}
        rows.append(row)
    return rows


def _values(records: Sequence[Mapping[str, Any]], group: str, metric: str) -> torch.Tensor:
    return torch.tensor([record["figures"][group][metric] for record in records], dtype=torch.float64)


def draw_curves(report: Mapping[str, Any]) -> Image.Image:
    """Gains over the steps of UNet and adapter: the person in other poses, and the photos' own poses."""
    charts = []
    for num_photos, rows in report["num_photos"].items():
        steps = [row for row in rows if row["phase"] in ("before", "denoiser")]
        curves = {
            name: [(row["step"], row["gains"][group]["foreground_psnr"]["mean"]) for row in steps]
            for name, group in (("other poses", "all"), ("the photos' own poses", "photos"))
        }
        title = f"{num_photos} photo{'s' if int(num_photos) > 1 else ''}: gain in foreground PSNR, dB"
        charts.append(line_chart(curves, title))
    return picture_grid([charts])


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write it as JSON and, where UNet and adapter were measured on the way, its curves beside that as PNG."""
    write_json(path, report)
    if any([row["phase"] for row in rows].count("denoiser") > 1 for rows in report["num_photos"].values()):
        draw_curves(report).save(path.with_suffix(".png"), optimize=True)


def print_report(report: Mapping[str, Any]) -> None:
    """The gains as a table, a line for each number of photos, phase and step."""
    columns = [
        *(("all", m) for m in ("psnr", "ssim", "l1", "foreground_psnr", "cloth_psnr")),
        *(("back", m) for m in ("psnr", "ssim", "foreground_psnr")),
        ("still_window", "cloth_psnr"),
        *(("photos", m) for m in ("psnr", "foreground_psnr")),
        ("vae_round_trip", "psnr"),
    ]
    print("photos phase    step " + " ".join(f"{f'{g[:5]} {m[:10]}':>16}" for g, m in columns))
    for num_photos, rows in report["num_photos"].items():
        for row in rows:
            kind = "figures" if row["phase"] == "before" else "gains"
            cells = [_cell(row[kind][g][m]) for g, m in columns]
            improved = "" if kind == "figures" else f"  ssim up {row['improved']['all']['ssim']}"
            print(f"{num_photos:6} {row['phase']:8} {row['step']:4} " + " ".join(f"{c:>16}" for c in cells) + improved)


def _cell(value: Mapping[str, float | int | None]) -> str:
    error = "" if value["standard_error"] is None else f" ±{value['standard_error']:.3f}"
    return "-" if value["mean"] is None else f"{value['mean']:+.3f}{error}"
