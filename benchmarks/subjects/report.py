# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Trials of stage 2 run side by side, kept one by one, and put together: gains over the model before."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.kept_jobs import kept_path, run_missing
from benchmarks.subjects.trials import RECORDS_VERSION, Trial, run_trial
from training.media.charts import line_chart
from training.media.pictures import picture_grid
from training.metrics.frames import mean_and_standard_error


METRICS = ("psnr", "ssim", "l1", "foreground_psnr", "silhouette_iou", "cloth_psnr")
GROUPS = ("all", "back", "still_window", "photos", "vae_round_trip")
SWEPT = {  # what is compared of variations: group and metric
    "psnr": ("all", "psnr"),
    "ssim": ("all", "ssim"),
    "foreground_psnr": ("all", "foreground_psnr"),
    "back_foreground_psnr": ("back", "foreground_psnr"),
    "own_pose_foreground_psnr": ("photos", "foreground_psnr"),
    "vae_round_trip_psnr": ("vae_round_trip", "psnr"),
}
CURVES = {"other poses": "foreground_psnr", "the photos' own poses": "own_pose_foreground_psnr"}


def trial_path(trial: Trial, work_dir: Path) -> Path:
    """Where a trial's records are kept: trials of other settings, weights or drawings have other names."""
    return kept_path(work_dir, f"{trial.split}-{trial.index:03d}", [RECORDS_VERSION, asdict(trial)])


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
    kept = dict(zip(jobs, run_missing(_run, jobs, num_processes)))
    return [kept[trial_path(trial, work_dir)]["records"] for trial in trials]  # of equal ones each its own


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
    """Gains over the steps of UNet and adapter, and then of the VAE's decoder; a row for each number of photos."""
    kinds = {
        "denoiser": {"other poses": "foreground_psnr", "the photos' own poses": "own_pose_foreground_psnr"},
        "decoder": {"other poses": "foreground_psnr", "VAE round trip, all pixels": "vae_round_trip_psnr"},
    }
    titles = {"denoiser": "UNet and adapter", "decoder": "then the VAE's decoder"}
    charts = []
    for number, rows in report["num_photos"].items():
        name, last = f"{number} photo{'s' if int(number) > 1 else ''}", [row for row in rows if row["step"] == 0]
        charts.append([])
        for phase, curves in kinds.items():
            steps = [row for row in rows if row["phase"] == phase]
            points = {  # a phase begins where the one before it ended
                title: [(0, last[-1]["gains"][g][m]["mean"])] + [(r["step"], r["gains"][g][m]["mean"]) for r in steps]
                for title, (g, m) in ((title, SWEPT[key]) for title, key in curves.items())
            }
            if steps:
                charts[-1].append(line_chart(points, f"{name}, {titles[phase]}: gain, dB"))
                last = steps
    return picture_grid(charts)


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
            cells = [format_gain(row[kind][g][m]) for g, m in columns]
            improved = "" if kind == "figures" else f"  ssim up {row['improved']['all']['ssim']}"
            print(f"{num_photos:6} {row['phase']:8} {row['step']:4} " + " ".join(f"{c:>16}" for c in cells) + improved)


def format_gain(value: Mapping[str, float | int | None], digits: int = 3, sign: str = " ±") -> str:
    """A mean and its standard error, as far as there are any."""
    error = "" if value["standard_error"] is None else f"{sign}{value['standard_error']:.{digits}f}"
    return "-" if value["mean"] is None else f"{value['mean']:+.{digits}f}{error}"


def compare_with_first(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Gains of a variation, how many subjects gained in SSIM, and what of it is beyond the first variation's."""
    by_subject = {name: row["gain_by_subject"][g][m] for name, (g, m) in SWEPT.items()}
    others = {name: first["gain_by_subject"][g][m] for name, (g, m) in SWEPT.items()}
    differences = {
        name: torch.tensor(v, dtype=torch.float64) - torch.tensor(others[name], dtype=torch.float64)
        for name, v in by_subject.items()
    }
    return {
        "gains": {name: row["gains"][g][m] for name, (g, m) in SWEPT.items()},
        "num_improved_ssim": row["improved"]["all"]["ssim"],
        "beyond_the_first": {name: mean_and_standard_error(v) for name, v in differences.items()},
    }


def draw_sweep(report: Mapping[str, Any], settings: Mapping[str, Any]) -> Image.Image:
    """Gain in foreground PSNR over each option of which several values were tried alone."""
    points = {}
    for variation in report.values():
        for option, value in variation["differs_in"].items() if len(variation["differs_in"]) == 1 else ():
            if not isinstance(value, (bool, str)):
                points.setdefault(option, {})[value] = variation["gains"]
    base = next(v["gains"] for v in report.values() if not v["differs_in"])
    charts = []
    for option, gains in points.items():
        gains = sorted((gains | {settings[option]: base}).items())
        curves = {name: [(value, by[metric]["mean"]) for value, by in gains] for name, metric in CURVES.items()}
        charts.append(line_chart(curves, f"{option}: gain in foreground PSNR, dB"))
    return picture_grid([charts[i : i + 2] for i in range(0, len(charts), 2)])


def format_sweep(report: Mapping[str, Any]) -> str:
    """Gains as a table in Markdown, mean ± standard error over subjects."""
    titles = [*(name.replace("_", " ") for name in SWEPT), "foreground psnr beyond the first row's"]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, variation in report.items():
        cells = [
            format_gain(value, 3 if column == "ssim" else 2, " ± ") for column, value in variation["gains"].items()
        ]
        cells.append(format_gain(variation["beyond_the_first"]["foreground_psnr"], 2, " ± "))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
