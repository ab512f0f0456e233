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
from training.metrics.baselines import sample_frames
from training.metrics.clips import Clip, Clips, load_clips
from training.options.clips import check_clip_options


SUFFIX = ".values.json"
NAMES = r"[^.].*"  # any names before the suffix


def load_model_and_clips(options: argparse.Namespace) -> tuple[DreamPosePipeline, Clips]:
    """Check the options, then load the pipeline and the clips. A clip is read from disk whenever it is measured."""
    check_clip_options(options)
    size = default_size(options.model)
    clips = load_clips(options.dataset, options.split, options.num_clips, options.frames_per_clip, size=size)
    pipe = load_pipeline(options.model, options.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, clips


def sample_clips(
    pipe: DreamPosePipeline, clips: Sequence[Clip], **call_options
) -> Iterator[tuple[Clip, torch.Tensor]]:
    """Yield each clip with its sampled target frames. The number of the clip is the seed of its noise."""
    for seed, clip in enumerate(clips):
        where = clip.reference, clip.iuv, clip.frame_indices, clip.targets[0].size
        yield clip, sample_frames(pipe, *where, seed, **call_options)


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
