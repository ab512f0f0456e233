# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Write the tables of the documents from the figures of the benchmarks, so that no document shows older ones.

python docs/tables.py

A table is found by its first line, which stays as it is.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_card" / "tiny" / "README.md"
EVALUATION = CARD.with_name("evaluation")
DIGITS = {"psnr": 2, "foreground_psnr": 2, "cloth_psnr": 2, "ssim": 4, "sharpness": 3, "flicker": 4}


def read(name: str) -> dict[str, Any]:
    """Return a report of `benchmarks`, such as `"claims/few_steps"`."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def figure(value: Mapping[str, float], digits: int, is_difference: bool = False) -> str:
    """Return `mean ± standard error`; a difference has a sign."""
    sign = "+" if is_difference else ""
    return f"{value['mean']:{sign}.{digits}f} ± {value['standard_error']:.{digits}f}"


def cells(
    row: Mapping[str, Any], metrics: Sequence[str], suffix: str = "", digits: Mapping[str, int] = DIGITS
) -> list[str]:
    """Return the figures of a row by metric, or with a suffix its differences to the first row."""
    return [figure(row[metric + suffix], digits.get(metric, 4), bool(suffix)) for metric in metrics]


def table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The header is its first line."""
    columns = header.count("|") - 1
    return "\n".join([header, "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def summary() -> str:
    """The best known figures of the small model and its baselines, cut from the evaluation's own tables."""
    found = {}
    for part in (EVALUATION / "evaluation.md").read_text().split("\n\n"):
        lines = [[c.strip() for c in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
        for name, *values in lines[2:]:
            found.setdefault(name, {}).update(zip(lines[0][1:], values))
    header = "| | psnr | ssim | cloth psnr | hem l1 | temporal error |"
    names = {
        "model": "model",
        "VAE round trip": "VAE round trip, the best that this VAE allows",
        "copy of the reference": "copy of the photo",
        "warp of the reference": "texture of the photo, warped by the exact UV",
    }
    metrics = [name.strip() for name in header.split("|")[2:-1]]
    return table(header, [[title, *(found[name][metric] for metric in metrics)] for name, title in names.items()])


def evaluation_table(number: int) -> Callable[[], str]:
    """Return a function that gives a table of the evaluation: whole frames, parts of frames or time."""
    return lambda: (EVALUATION / "evaluation.md").read_text().split("\n\n")[number].strip()


def claims() -> str:
    """The paper's claims, as the ablation writes them."""
    return (ROOT / "benchmarks" / "claims" / "ablation.md").read_text().split("\n\n")[0]


def guidance_interval() -> str:
    """Guidance in a part of the steps, on validation clips."""
    names = {
        "0 to 1": "all",
        "0 to 0.5": "first half, 0 to 0.5",
        "0 to 0.75": "**all but the last, 0 to 0.75**",
        "0.25 to 0.75": "the middle, 0.25 to 0.75",
        "0.25 to 1": "all but the first, 0.25 to 1",
        "0.5 to 1": "second half, 0.5 to 1",
        "0 to 0": "none",
    }
    metrics, rows = ("psnr", "ssim", "temporal_error", "flicker"), []
    for name, title in names.items():
        row = read("claims/guidance_interval")["rows"][name]
        suffix = "_minus_reference" if rows else ""
        rows.append([title, f"{row['passes_per_frame']:.1f}", *cells(row, metrics, suffix)])
    return table("| guided steps | passes | psnr | ssim | temporal error | flicker |", rows)


def schedulers() -> str:
    """Few trailing timesteps against 15 leading ones, on all frames of the test clips."""
    report, metrics = read("claims/schedulers_test"), ("psnr", "ssim", "temporal_error", "flicker")
    digits = DIGITS | {"flicker": 5}
    rows = [["15 steps, leading", *cells(report["reference"], metrics, digits=digits)]]
    for steps, row in report["rows"]["DPM-Solver++ trailing"].items():
        title = f"{steps} steps, trailing"
        rows.append([f"**{title}**" if steps == "4" else title, *cells(row, metrics, "_minus_reference", digits)])
    return table("| DPM-Solver++ | psnr | ssim | temporal error | flicker |", rows)


def steps_of_the_card() -> str:
    """The stored 4 steps against 15, with and without guidance in the last one."""
    report, metrics = read("claims/schedulers_test"), ("psnr", "ssim", "temporal_error", "flicker")
    four, stored = report["rows"]["DPM-Solver++ trailing"]["4"], read("claims/guidance_interval_test")["rows"]
    digits, minus = DIGITS | {"flicker": 5}, "_minus_reference"
    rows = [
        ["15 steps, leading", *cells(report["reference"], metrics, digits=digits)],
        ["4 steps, trailing", *cells(four, metrics, digits=digits)],
        ["difference", *cells(four, metrics, minus, digits)],
        [
            "4 steps, trailing, the last without guidance, as stored",
            *cells(stored["0 to 0.75"], metrics, digits=digits),
        ],
        ["difference to 4 guided steps", *cells(stored["0 to 0.75"], metrics, minus, digits)],
    ]
    return table("| | psnr | ssim | temporal error | flicker |", rows)


def alignment() -> str:
    """What the poses of other bodies and places cost, as filmed and aligned."""
    names = {
        "in place": "already in place",
        "same body": "the subject's own body",
        "another body": "another subject's body",
        "widths off": "widths 10 to 30 % off",
        "widths and lengths off": "widths and lengths 10 to 30 % off",
    }
    rows = []
    for name, title in names.items():
        rows.append([title])
        for mode, by_metric in read("claims/alignment")["rows"][name].items():
            lost, iou = by_metric["psnr_lost"], by_metric["silhouette_iou"]["mean"]
            loss = figure(lost, 2) if lost["standard_error"] else f"{lost['mean']:.2f}"
            overlap = f"{iou:.{2 if mode == 'as filmed' else 3}f}".lstrip("0")
            rows[-1].append(f"{loss} ({overlap})")
    return table("| driver | as filmed | `--align place` | `--align body` |", rows)


def real_time() -> str:
    """Frames a second on a CPU."""
    report, rows = read("speed/realtime"), []
    names = {
        "15 leading steps, scales of 2": "guided",
        "the same with attention broadcast": "guided, attention broadcast",
        "stored default: 4 trailing steps, scales of 2 in the first 3": "stored default",
    }
    for title, kind in (
        ("", "float32"),
        (", channels last", "channels last"),
        (", channels last, bfloat16", "bfloat16"),
    ):
        names |= {f"one step{title}, chunks of {size}": f"one step, {kind}, {size}" for size in (8, 16, 64)}
    for title, name in names.items():
        times, above = (
            report["ratios"].get(f"{name} / guided", 1),
            report["ratios"].get(f"{name}, time above the floor"),
        )
        share = "" if above is None else f"{100 * above:.0f} %"
        rows.append([title, f"{report['median_frames_a_second'][name]:.1f}", f"{times:.1f}", share])
    return table("| | frames a second | times the first row | time above the floor |", rows)


def few_steps(header: str) -> Callable[[], str]:
    """Return a function that gives the table of a header, which names the metrics."""
    metrics = [name.strip().replace(" ", "_") for name in header.split("|")[2:-1]]
    names = {
        "teacher, 15 steps": "model, 15 leading steps, guided in all",
        "teacher, stored steps": "model, its stored steps",
        "teacher, 15 steps without guidance": "model, 15 leading steps, no guidance",
    }
    for kind, title in {"LoRA": "few-step LoRA", "full": "all weights distilled"}.items():
        for steps in ("1 step", "2 steps", "4 steps"):
            names[f"{kind}, {steps}"] = f"{title}, {steps}"
    names["LoRA, 1 step"] = "**few-step LoRA, 1 step**"

    def render() -> str:
        rows = read("claims/few_steps")["rows"]
        return table(
            header,
            [
                [title, *cells(rows[name], metrics, "" if name == "teacher, 15 steps" else "_minus_teacher")]
                for name, title in names.items()
            ],
        )

    return render


def real_clip() -> str:
    """Training on one real clip."""

    def row(title: str, *names: str) -> list[str]:
        found, cell = [read("claims/real_clip")["figures"][name] for name in names], []
        for metric, digits in (("psnr", 2), ("ssim", 3), ("foreground_psnr", 2)):
            first, *second = [f"{values[metric]:.{digits}f}" for values in found]
            cell.append(first + (f" ({second[0]})" if second else ""))
        return [title, *cell]

    small, first = (
        [f"{start}, stage 2 of {photos}" for photos in ("one photo", "four photos")]
        for start in ("small model", "stage 1")
    )
    prior, clips = ", with prior", ", with prior and textured clips"
    rows = [
        row("copy of the photo", "copied photo"),
        row("the truth, through the small model's VAE", "small model's VAE"),
        row("small model", "small model"),
        row("small model, stage 2 of one photo (of four)", *small),
        row("the same with drawn people as `--prior_dataset`", *(name + prior for name in small)),
        row("with drawn people and textured clips", *(name + clips for name in small)),
        row("**stage 1 continued on the clip**: 300 steps of 8", "stage 1"),
        row("stage 1, then stage 2 of one photo (of four)", *first),
        row("**the same with stage 1's data as `--prior_dataset`**", *(name + prior for name in first)),
        row("with stage 1's data and textured clips", *(name + clips for name in first)),
    ]
    return table("| | PSNR | SSIM | foreground PSNR |", rows)


def gains() -> str:
    """What stage 2 gains on drawn subjects."""
    columns = [("all", "psnr", 2), ("all", "ssim", 3), ("all", "foreground_psnr", 2), ("all", "cloth_psnr", 2)]
    columns += [("back", "foreground_psnr", 2), ("photos", "psnr", 2), ("vae_round_trip", "psnr", 2)]
    rows = []
    for number, measured in read("subjects/gains")["num_photos"].items():
        photos = {"1": "one photo", "4": "four photos"}[number]
        for row in measured:
            if row["phase"] == "before":
                continue
            how = (
                f"{row['step']} steps of UNet and adapter"
                if row["phase"] == "denoiser"
                else f"then {row['step']} of the decoder"
            )
            cell = [figure(row["gains"][group][metric], digits, True) for group, metric, digits in columns]
            cell[1] += f" ({row['improved']['all']['ssim']} of {row['gains']['all']['ssim']['n']})"
            rows.append([f"{photos}, {how}", *cell])
    header = "| gain over the model without stage 2 | psnr | ssim | foreground psnr | cloth psnr | foreground of backs"
    return table(header + " | the photos' own poses, psnr | VAE round trip, psnr |", rows)


FEW_STEPS = [
    "| | psnr | ssim | foreground psnr | cloth psnr |",
    "| | hem l1 | hair l1 | identity distance |",
    "| | temporal error | flicker | sharpness |",
]
WHOLE, PARTS, TIME = (evaluation_table(number) for number in range(3))
TABLES = {  # document -> functions that give its tables
    "docs/results.md": [summary, WHOLE, PARTS, TIME, guidance_interval, schedulers, alignment, claims, real_time],
    "docs/few_steps.md": [few_steps(header) for header in FEW_STEPS],
    "docs/subjects.md": [real_clip, gains],
    "model_card/tiny/README.md": [WHOLE, PARTS, TIME, steps_of_the_card],
}


def fill(document: str, tables: Sequence[str]) -> str:
    """Return a document with the tables in the places of those with the same first line.

    Raises:
        ValueError: If the document lacks a table.
    """
    for new in tables:
        header = new.splitlines()[0]
        pattern = re.compile(rf"^{re.escape(header)}\n(?:\|.*\n)*\|[^\n]*$", re.MULTILINE)
        if not pattern.search(document):
            raise ValueError(f"`document` must have the table with the first line {header!r}, but it has not.")
        document = pattern.sub(lambda _, new=new: new, document)
    return document


def fill_metadata(card: str) -> str:
    """Return a model card with the model's own figures in the metadata at its head."""
    row = json.loads((EVALUATION / "evaluation.json").read_text())["rows"]["model"]
    return re.sub(
        r"(- type: (\w+)\n +value: )[\d.]+", lambda found: f"{found[1]}{round(row[found[2]]['mean'], 4)}", card
    )


def filled() -> dict[Path, str]:
    """Return the text of each document as it should be."""
    texts = {
        ROOT / name: fill((ROOT / name).read_text(), [render() for render in renders])
        for name, renders in TABLES.items()
    }
    return texts | {CARD: fill_metadata(texts[CARD])}


if __name__ == "__main__":
    for path, text in filled().items():
        path.write_text(text)
