# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A saved model on held-out clips: loading, sampling and resuming, shared by the guidance and scheduler benchmarks."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training.hub.repositories import default_size, load_pipeline
from training.media.animation import finished_frames, open_frames, remove_frames
from training.media.settings_file import write_json
from training.metrics import baselines
from training.metrics.baselines import sample_frames
from training.metrics.clips import Clip, Clips, load_clips
from training.metrics.frames import mean_and_standard_error
from training.options.clips import check_clip_options


SUFFIX = ".values.json"
METRICS = ("psnr", "ssim", "silhouette_iou", "temporal_error", "flicker")
NAMES = r"[^.].*"  # any names before the suffix


def add_consecutive_option(add: Callable[..., argparse.Action], default: int) -> None:
    """Add `--num_consecutive` by the `add_argument` of a group."""
    text = "consecutive frames per clip for temporal metrics, or 0"
    add("--num_consecutive", type=int, default=default, help=text)


def load_model_and_clips(options: argparse.Namespace) -> tuple[DreamPosePipeline, Clips]:
    """Check the options, then load the pipeline and the clips. A clip is read from disk whenever it is measured."""
    check_clip_options(options)
    chosen = options.num_clips, options.frames_per_clip, 0, options.num_consecutive, default_size(options.model)
    clips = load_clips(options.dataset, options.split, *chosen, options.photo_split)
    pipe = load_pipeline(options.model, options.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, clips


def sample_clips(
    pipe: DreamPosePipeline, clips: Sequence[Clip], **call_options
) -> Iterator[tuple[Clip, torch.Tensor, torch.Tensor]]:
    """Yield each clip with its sampled target frames and consecutive frames. Its number is the seed of its noise."""
    for seed, clip in enumerate(clips):
        indices = sorted({*clip.frame_indices, *clip.run_indices})
        where = clip.reference, clip.iuv, indices, clip.targets[0].size
        frames = sample_frames(pipe, *where, seed, **call_options)
        yield clip, *(frames[[indices.index(i) for i in chosen]] for chosen in (clip.frame_indices, clip.run_indices))


def measure_sampled(clip: Clip, frames: torch.Tensor, run: torch.Tensor) -> dict[str, float]:
    """Measure what [`sample_clips`] yields: the target frames and, if there are any, the consecutive frames."""
    values = baselines.measure(frames, clip.targets, clip.layers)
    values |= baselines.measure_run(run, clip.run_targets, clip.run_layers) if len(run) else {}
    return {name: values[name] for name in METRICS if name in values}


def summarize(
    clips: Sequence[Mapping[str, float]],
    reference: Sequence[Mapping[str, float]] | None = None,
    suffix: str = "minus_reference",
) -> dict[str, dict]:
    """Average the figures of clips by metric, with standard errors, and their differences to `reference`, if given.

    A difference is taken clip by clip and has the metric's name with `suffix`.
    """
    figures = {name: torch.tensor([values[name] for values in clips]) for name in clips[0]}
    rows = {name: mean_and_standard_error(values) for name, values in figures.items()}
    for name, values in figures.items() if reference is not None else ():
        difference = values - torch.tensor([other[name] for other in reference])
        rows[f"{name}_{suffix}"] = mean_and_standard_error(difference)
    return rows


def measure_missing(
    folder: Path,
    settings: dict[str, Any],
    resume: bool,
    unit: str,
    measures: Mapping[str, Callable[[], Any]],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Take the measurements that a folder does not hold yet and keep each one there, so that a stopped run can resume.

    Args:
        folder (`Path`): Folder of an unfinished run.
        settings (`dict[str, Any]`): Everything that the measurements depend on, as JSON.
        resume (`bool`): Keep the measurements of a stopped run.
        unit (`str`): Name of the measurements in messages.
        measures (`Mapping[str, Callable]`): By name, a function whose result JSON can hold.
        overwrite (`bool`): Delete the measurements of a stopped run.
    """
    open_frames(folder, settings, resume, SUFFIX, unit, overwrite, NAMES)
    values = {}
    for name, measure in tqdm(measures.items()):
        path = folder / f"{name}{SUFFIX}"
        if not path.exists():
            write_json(path, measure())
        values[name] = json.loads(path.read_text())
    return values


def remove_measurements(folder: Path) -> None:
    """Delete the files of [`measure_missing`] and their pictures, and the folder unless it holds other files."""
    for path in finished_frames(folder, SUFFIX, NAMES):
        (folder / f"{path.name.removesuffix(SUFFIX)}.png").unlink(missing_ok=True)
    remove_frames(folder, SUFFIX, NAMES)
