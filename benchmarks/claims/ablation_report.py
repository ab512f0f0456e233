# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What the ablation says of the paper's claims: differences clip by clip, a verdict by a rule, and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.metrics.figures import METRICS
from training.metrics.frames import mean_and_standard_error


SHOWN = ("ssim", "l1", "psnr", "hem_l1", "flicker")  # in the table; the report has all
Values = Mapping[str, Sequence[float]]  # by metric, one value a clip or a subject


@dataclass(frozen=True)
class Claim:
    """A question and what decides it.

    Args:
        question (`str`): What is held to be better, beside what.
        paper (`str`): The figures of the paper's table of ablations, arXiv:2304.06025, first of what is held better.
        better, worse (`tuple[str, str]`): Arm and key of its figures, on both sides.
        metric (`str`): The metric that decides.
        remark (`str`): What must be known to read the row.
    """

    question: str
    paper: str
    better: tuple[str, str]
    worse: tuple[str, str]
    metric: str = "ssim"
    remark: str = ""


CAPTION = (
    "First side minus second, ± one standard error over clips (of stage 2: subjects); L1, hem L1 and flicker are"
    " better where they fall. **Bold** decides, with the mean of each seed in brackets: *confirmed* wants two standard"
    " errors and each seed on the same side. Two trained pairs are few, so a difference that is small beside that of"
    " the seeds is no more than an indication. The paper's figures are levels, of the first side and of the second,"
    " after stage 2; the arms here are of stage 1."
)
FROM_TRIALS = "stage 2 of the small model, `benchmarks/subjects/gains.py`"
CLAIMS = [
    Claim(
        "CLIP and VAE tokens, against CLIP tokens only",
        "SSIM .900, .882; L1 .019, .025; LPIPS .056, .070",
        ("full", "guided"),
        ("clip_only", "guided"),
        remark="the image encoder of this size was trained for this very task, which CLIP was not",
    ),
    Claim(
        "five poses, against one",
        "SSIM .900, .899; L1 .019, .019; LPIPS .056, .056",
        ("full", "guided"),
        ("one_pose", "guided"),
    ),
    Claim(
        "five poses, against one, on the hems of loose cloth",
        "no figure",
        ("full", "guided"),
        ("one_pose", "guided"),
        metric="hem_l1",
        remark="loose cloth lags behind the body",
    ),
    Claim(
        "conditioning dropped for 5 % each, against never, with guidance of 2",
        "no figure",
        ("full", "guided"),
        ("no_dropout", "guided"),
    ),
    Claim(
        "conditioning dropped and guidance of 2, against never dropped and no guidance",
        "no figure",
        ("full", "guided"),
        ("no_dropout", "unguided"),
        remark="each side as it is meant to be sampled",
    ),
    Claim(
        "one draw of noise for all frames, against one for each",
        "no figure",
        ("noise", "shared_noise"),
        ("noise", "independent_noise"),
        metric="flicker",
        remark="the shipped model",
    ),
    Claim(
        "a subject's own weights from one photo, against none",
        "no figure",
        ("photos 1", "end"),
        ("photos 1", "before"),
        remark=FROM_TRIALS,
    ),
    Claim(
        "a subject's own weights from four photos, against none",
        "no figure",
        ("photos 4", "end"),
        ("photos 4", "before"),
        remark=FROM_TRIALS,
    ),
    Claim(
        "the VAE's decoder trained too (one photo), against UNet and adapter only",
        "SSIM .900, .897; L1 .019, .025; LPIPS .056, .057",
        ("photos 1", "end"),
        ("photos 1", "denoiser"),
        remark=FROM_TRIALS,
    ),
]


def values_of(clips: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Figures of clips by metric."""
    return {name: [clip[name] for clip in clips] for name in METRICS if all(name in clip for clip in clips)}


def values_of_subjects(report: Mapping[str, Any]) -> dict[tuple[str, str], list[Values]]:
    """Figures of stage 2 as sides of claims: gains over the model before, subject by subject.

    Args:
        report (`Mapping`): What `benchmarks.subjects.gains` wrote.
    Returns:
        `dict`: By `("photos N", "before" | "denoiser" | "end")`, one entry, since there is one seed.
    """
    sides = {}
    for number, rows in report["num_photos"].items():
        last = {row["phase"]: row["gain_by_subject"]["all"] for row in rows}
        sides |= {(f"photos {number}", phase): [last[phase]] for phase in ("before", "denoiser") if phase in last}
        sides[f"photos {number}", "end"] = [rows[-1]["gain_by_subject"]["all"]]
    return sides


def compare(better: Sequence[Values], worse: Sequence[Values]) -> dict[str, dict]:
    """Differences, better minus worse, averaged over seeds clip by clip.

    Args:
        better, worse (`Sequence[Values]`): One entry a seed, in the same order, over the same clips.
    Returns:
        `dict`: By metric `mean`, `standard_error` and `n` over clips, and `seeds`, the mean of each seed.
    """
    table = {}
    for name in better[0]:
        if name not in worse[0]:
            continue
        rows = torch.tensor([b[name] for b in better]) - torch.tensor([w[name] for w in worse])
        table[name] = mean_and_standard_error(rows.mean(0)) | {"seeds": rows.nanmean(1).tolist()}
    return table


def verdict(metric: str, difference: Mapping[str, Any]) -> str:
    """Confirmed if the better side is better by more than two standard errors in the mean and in each seed better;
    not confirmed if it is worse likewise; else not decided.

    Args:
        metric (`str`): Which says whether higher is better.
        difference (`Mapping`): Of `compare`.
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
    """All claims whose sides were measured, with their differences and verdicts.

    Args:
        sides (`Mapping`): By arm and key of figures, one entry a seed.
    """
    rows = []
    for claim in CLAIMS:
        if claim.better in sides and claim.worse in sides:
            differences = compare(sides[claim.better], sides[claim.worse])
            row = {**vars(claim), "differences": differences}
            rows.append(row | {"verdict": verdict(claim.metric, differences[claim.metric])})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The claims as a Markdown table with its caption: what decides, the differences, the verdict.

    Args:
        rows (`Sequence[Mapping]`): Of `judge`.
    """
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
    error = difference["standard_error"]
    text = f"{difference['mean']:+.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
    seeds = ", ".join(f"{mean:+.{digits}f}" for mean in difference["seeds"])
    return mark + text + mark + (f" ({seeds})" if decides and len(difference["seeds"]) > 1 else "")
