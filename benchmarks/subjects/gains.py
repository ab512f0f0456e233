# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Measure the gain of stage 2 on drawn subjects that stage 1 never saw, in poses that no photo shows.

Each subject is learnt from one photo and from four. Every finished trial is kept in `--work_dir`, so a stopped run
resumes when it is started again. Options after `--` are those of training/finetune.py.

    python -m benchmarks.subjects.gains [options] -- [options of finetune.py]
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.scripts import count, format_mean, machine_facts, package_versions, parse_benchmark, run_script
from benchmarks.subjects.many_trials import (
    parse_stage_two,
    plan_trials,
    run_all,
    split_words,
    summarize,
    taken_options,
)
from benchmarks.subjects.trials import add_subject_options
from training.media.charts import line_chart
from training.media.pictures import picture_grid
from training.media.settings_file import write_json
from training.options.command import CommandParser
from training.options.subject import METHOD_OPTIONS


COLUMNS = [
    *(("all", m) for m in ("psnr", "ssim", "l1", "foreground_psnr", "cloth_psnr")),
    *(("back", m) for m in ("psnr", "ssim", "foreground_psnr")),
    ("still_window", "cloth_psnr"),
    *(("photos", m) for m in ("psnr", "foreground_psnr")),
    ("vae_round_trip", "psnr"),
]
OTHER_POSES = {"other poses": ("all", "foreground_psnr")}
CURVES = {  # phase -> title, and the group and metric of each curve
    "denoiser": ("UNet and adapter", OTHER_POSES | {"the photos' own poses": ("photos", "foreground_psnr")}),
    "decoder": ("then the VAE's decoder", OTHER_POSES | {"VAE round trip, all pixels": ("vae_round_trip", "psnr")}),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(usage="%(prog)s [--OPTION VALUE ...] -- [OPTIONS OF finetune.py]", description=__doc__)
    add_subject_options(parser, Path("runs/subjects"))
    add = parser.add_argument_group("training").add_argument
    add("--num_photos", type=int, nargs="+", choices=range(1, 5), default=[1, 4], help="photos to learn from")
    add("--num_clips", type=count, default=0, help="take this many true clips of a subject in place of textured clips")
    add("--curve_steps", type=count, help="also measure after every so many steps, and draw curves")
    words, finetune = split_words(argv)
    options = parse_benchmark(parser, words, "benchmarks/subjects/gains.json", ", with any curves next to it")
    options.finetune = parse_stage_two(METHOD_OPTIONS, finetune)
    if len(set(options.num_photos)) < len(options.num_photos):
        raise ValueError(f"`num_photos` must be numbers that differ, got {options.num_photos}.")
    if options.num_clips and taken_options(options.finetune)["prior_dataset"] is None:
        raise ValueError(f"`num_clips` must be 0 without a `prior_dataset`, got {options.num_clips}.")
    return options


def draw_curves(report: Mapping[str, Any]) -> Image.Image:
    """Draw the gains over the steps of each phase, with a row of charts per number of photos."""
    charts = []
    for number, rows in report["num_photos"].items():
        name, last = f"{number} photo{'s' if int(number) > 1 else ''}", [row for row in rows if row["step"] == 0]
        charts.append([])
        for phase, (title, curves) in CURVES.items():
            steps = [row for row in rows if row["phase"] == phase]
            points = {  # a phase starts at the end of the phase before it
                label: [(0, last[-1]["gains"][g][m]["mean"])] + [(r["step"], r["gains"][g][m]["mean"]) for r in steps]
                for label, (g, m) in curves.items()
            }
            if steps:
                charts[-1].append(line_chart(points, f"{name}, {title}: gain, dB"))
                last = steps
    return picture_grid(charts)


def print_report(report: Mapping[str, Any]) -> None:
    print("photos phase    step " + " ".join(f"{f'{g[:5]} {m[:10]}':>16}" for g, m in COLUMNS))
    for num_photos, rows in report["num_photos"].items():
        for row in rows:
            kind = "figures" if row["phase"] == "before" else "gains"
            cells = " ".join(f"{format_mean(row[kind][g][m]):>16}" for g, m in COLUMNS)
            improved = "" if kind == "figures" else f"  ssim up {row['improved']['all']['ssim']}"
            print(f"{num_photos:6} {row['phase']:8} {row['step']:4} {cells}{improved}")


def main(options: argparse.Namespace) -> dict:
    """Run the missing trials, print and write the figures, and return them."""
    trials = plan_trials(options, options.finetune, options.num_photos, options.num_clips, options.curve_steps)
    results = run_all(trials, options.work_dir, options.num_processes)
    not_listed = ("finetune", "output", "work_dir")
    settings = {name: str(value) for name, value in vars(options).items() if name not in not_listed}
    report = {
        "settings": settings | {"digest": trials[0].digest, "finetune": taken_options(options.finetune)},
        "machine": machine_facts("processor", "cores"),
        "versions": package_versions("torch", "diffusers", "peft"),
        "num_photos": {
            number: summarize([r for t, r in zip(trials, results) if t.num_photos == number])
            for number in options.num_photos
        },
    }
    print_report(report)
    write_json(options.output, report)
    if options.curve_steps is not None:
        draw_curves(report).save(options.output.with_suffix(".png"), optimize=True)
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
