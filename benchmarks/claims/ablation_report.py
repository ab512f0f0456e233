# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Claims of the paper, with their differences clip by clip, their verdicts and the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.scripts import format_mean
from training.metrics.figures import METRICS
from training.metrics.frames import mean_and_standard_error


SHOWN = ("ssim", "l1", "psnr", "hem_l1", "flicker")  # columns of the table; the report has all metrics
Values = Mapping[str, Sequence[float]]  # by metric, one value per clip or subject


@dataclass(frozen=True)
class Claim:
    """A claim that one side is better than another. A side is an arm and the key of its figures."""

    question: str  # the side that should be better, then the other
    better: tuple[str, str]
    worse: tuple[str, str]
    paper: str = "no figure"  # for both sides, from the paper's ablation table, arXiv:2304.06025
    metric: str = "ssim"  # the metric that decides
    remark: str = ""


CAPTION = (
    "Difference of the two sides, first minus second, ± one standard error over clips (in stage 2: over subjects)."
    " Lower L1, hem L1 and flicker are better. The **bold** metric decides; the mean of each seed is in brackets."
    " *Confirmed* needs two standard errors, and the same sign in each seed. Two seeds are few, so a difference that"
    " is small compared with that between the seeds is only an indication. The paper's figures are the values of the"
    " first and the second side after stage 2; the arms here are of stage 1."
)
FULL, ONE_POSE = ("full", "guided"), ("one_pose", "guided")
STAGE_TWO = "stage 2 of the small model, `benchmarks/subjects/gains.py`"
CLAIMS = [
    Claim(
        "CLIP and VAE tokens, against CLIP tokens only",
        FULL,
        ("clip_only", "guided"),
        "SSIM .900, .882; L1 .019, .025; LPIPS .056, .070",
        remark="the image encoder of this size was trained for this very task, which CLIP was not",
    ),
    Claim("five poses, against one", FULL, ONE_POSE, "SSIM .900, .899; L1 .019, .019; LPIPS .056, .056"),
    Claim(
        "five poses, against one, on the hems of loose cloth",
        FULL,
        ONE_POSE,
        metric="hem_l1",
        remark="loose cloth lags behind the body",
    ),
    Claim("conditioning dropped for 5 % each, against never, with guidance of 2", FULL, ("no_dropout", "guided")),
    Claim(
        "conditioning dropped and guidance of 2, against never dropped and no guidance",
        FULL,
        ("no_dropout", "unguided"),
        remark="each side as it is meant to be sampled",
    ),
    Claim(
        "one draw of noise for all frames, against one for each",
        ("noise", "shared_noise"),
        ("noise", "independent_noise"),
        metric="flicker",
        remark="the shipped model",
    ),
    *(
        Claim(f"a subject's own weights from {text}, against none", (arm, "end"), (arm, "before"), remark=STAGE_TWO)
        for text, arm in (("one photo", "photos 1"), ("four photos", "photos 4"))
    ),
    Claim(
        "the VAE's decoder trained too (one photo), against UNet and adapter only",
        ("photos 1", "end"),
        ("photos 1", "denoiser"),
        "SSIM .900, .897; L1 .019, .025; LPIPS .056, .057",
        remark=STAGE_TWO,
    ),
]


def values_of(clips: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Collect the figures of clips by metric, for the metrics that all clips have."""
    return {name: [clip[name] for clip in clips] for name in METRICS if all(name in clip for clip in clips)}


def values_of_subjects(report: Mapping[str, Any]) -> dict[tuple[str, str], list[Values]]:
    """Return the gains over the untrained model, subject by subject, from a report of `benchmarks.subjects.gains`.

    The keys are the sides `("photos N", "before" | "denoiser" | "end")`. Each has one entry, since there is one seed.
    """
    sides = {}
    for number, rows in report["num_photos"].items():
        last = {row["phase"]: row["gain_by_subject"]["all"] for row in rows}
        sides |= {(f"photos {number}", phase): [last[phase]] for phase in ("before", "denoiser") if phase in last}
        sides[f"photos {number}", "end"] = [rows[-1]["gain_by_subject"]["all"]]
    return sides


def compare(better: Sequence[Values], worse: Sequence[Values]) -> dict[str, dict]:
    """Return the differences by metric, better minus worse: averaged over seeds clip by clip, and for each seed.

    Both sides have one entry per seed, in the same order, over the same clips.
    """
    table = {}
    for name in better[0]:
        if name not in worse[0]:
            continue
        rows = torch.tensor([b[name] for b in better]) - torch.tensor([w[name] for w in worse])
        table[name] = mean_and_standard_error(rows.mean(0)) | {"seeds": rows.nanmean(1).tolist()}
    return table


def verdict(metric: str, difference: Mapping[str, Any]) -> str:
    """Return the verdict on a difference of a metric.

    A claim is confirmed if the mean difference exceeds two standard errors and every seed agrees. It is not confirmed
    if both hold in the opposite direction. Otherwise it is not decided.
    """
    sign = 1 if METRICS[metric].is_higher_better else -1
    seeds = [sign * mean for mean in difference["seeds"]]
    clear = difference["standard_error"] is not None and abs(difference["mean"]) > 2 * difference["standard_error"]
    if clear and min(seeds) > 0:
        return "confirmed"
    if clear and max(seeds) < 0:
        return "not confirmed: the opposite"
    return "not decided at this size"


def judge(sides: Mapping[tuple[str, str], Sequence[Values]]) -> list[dict[str, Any]]:
    """Return all claims whose sides were measured, with their differences and verdicts."""
    rows = []
    for claim in CLAIMS:
        if claim.better in sides and claim.worse in sides:
            differences = compare(sides[claim.better], sides[claim.worse])
            row = {**vars(claim), "differences": differences}
            rows.append(row | {"verdict": verdict(claim.metric, differences[claim.metric])})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the claims of `judge` as a Markdown table with a caption."""
    lines = ["| | paper | " + " | ".join(name.replace("_", " ") for name in SHOWN) + " | verdict |"]
    lines.append("|---" * (len(SHOWN) + 3) + "|")
    for row in rows:
        cells = [_cell(name, row["differences"].get(name), name == row["metric"]) for name in SHOWN]
        question = row["question"] + (f" ({row['remark']})" if row["remark"] else "")
        lines.append(f"| {question} | {row['paper']} | {' | '.join(cells)} | {row['verdict']} |")
    return "\n".join([*lines, "", CAPTION]) + "\n"


def _cell(name: str, difference: Mapping[str, Any] | None, decides: bool) -> str:
    if difference is None or difference["mean"] is None:
        return ""
    digits, mark = METRICS[name].digits + 1, "**" if decides else ""
    seeds = ", ".join(f"{mean:+.{digits}f}" for mean in difference["seeds"])
    text = mark + format_mean(difference, digits) + mark
    return text + (f" ({seeds})" if decides and len(difference["seeds"]) > 1 else "")
