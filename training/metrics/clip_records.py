# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Clips measured one by one, each kept on disk when it is finished, so that processes share them and an evaluation
that was stopped goes on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training.media.settings_file import partial_path
from training.metrics.baselines import (
    ROWS,
    measure,
    measure_regions,
    measure_run,
    predict_clip,
    predict_run,
    to_tensor,
)
from training.metrics.clips import Clip
from training.metrics.learned import VIDEO_LENGTH, LearnedMetrics


SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ClipRecord:
    """What is kept of a clip.

    `values` are its figures by row and metric, `moved` is the clip's. `features` are those of whole sets by metric and
    set, shape `[B, D]`. `pictures` are predictions that will be shown, uint8 `[T, 3, H, W]`: those of the targets by
    name, those of the run as `run NAME`.
    """

    values: dict[str, dict[str, float]]
    moved: list[bool] = field(default_factory=list)
    features: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a safetensors file that appears under its name when it is whole."""
        tensors = {f"pictures/{name}": value for name, value in self.pictures.items()}
        tensors |= {f"features/{m}/{name}": v for m, by_set in self.features.items() for name, v in by_set.items()}
        partial = partial_path(path)
        facts = {"values": self.values, "moved": self.moved}
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"facts": json.dumps(facts)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "ClipRecord":
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            record = cls(**json.loads(file.metadata()["facts"]))
            for key in file.keys():
                kind, *names = key.split("/")
                place = record.pictures if kind == "pictures" else record.features.setdefault(names[0], {})
                place[names[-1]] = file.get_tensor(key)
        return record


def record_clip(
    pipe: DreamPosePipeline, clip: Clip, seed: int, learned: LearnedMetrics, keep_pictures: bool, **call_options
) -> ClipRecord:
    """Predict a clip in all conditions and measure it.

    Args:
        pipe (`DreamPosePipeline`): The model.
        clip (`Clip`): Photo, poses and targets.
        seed (`int`): Of the noise.
        learned (`LearnedMetrics`): The judges that can be had.
        keep_pictures (`bool`): Keep what a page shows.
        call_options: Passed to the pipeline.
    Returns:
        `ClipRecord`: Its figures.
    """
    predictions = predict_clip(pipe, clip, seed, **call_options)
    run = predict_run(pipe, clip, seed, predictions["own"], **call_options)
    truths = {"own": (clip.targets, clip.layers), "other": (clip.other_targets, clip.other_layers)}
    values = {}
    for row, (name, truth) in ROWS.items():
        if name not in predictions or truths[truth][0] is None:
            continue
        prediction, (targets, layers) = predictions[name], truths[truth]
        # The other subject's photo shows other parts than the clip's own.
        matches = None if name == "other_photo" else [clip.match(i) for i in clip.frame_indices]
        values[row] = measure(prediction, targets, layers)
        values[row] |= measure_regions(prediction, targets, layers, [clip.iuv[i] for i in clip.frame_indices], matches)
        values[row] |= learned.measure(prediction, to_tensor(targets))
        if name in run:
            values[row] |= measure_run(run[name], clip.run_targets, clip.run_layers)
    return ClipRecord(
        values=values,
        moved=list(clip.moved or ()),
        features=_set_features(learned, clip, predictions, run),
        pictures=_to_levels(predictions, run) if keep_pictures else {},
    )


def _set_features(
    learned: LearnedMetrics, clip: Clip, predictions: dict[str, torch.Tensor], run: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Features of predictions and truths, by metric and set."""
    features: dict[str, dict[str, torch.Tensor]] = {}
    pictures = predictions | {"true own": to_tensor(clip.targets)}
    if clip.other_targets is not None:
        pictures["true other"] = to_tensor(clip.other_targets)
    videos = run | {"true own": to_tensor(clip.run_targets)} if len(clip.run_indices) == VIDEO_LENGTH else {}
    for sets, compute in ((pictures, learned.picture_features), (videos, learned.video_features)):
        for name, frames in sets.items():
            for metric, value in compute(frames).items():
                features.setdefault(metric, {})[name] = value
    return features


def _to_levels(predictions: dict[str, torch.Tensor], run: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    shown = {name: predictions[name] for name in ("own", "other_photo", "warp") if name in predictions}
    shown |= {f"run {name}": run[name] for name in ("own", "warp") if name in run}
    return {name: frames.mul(255).round().byte() for name, frames in shown.items()}


def measure_clips(num_clips: int, folder: Path, record: Callable[[int], ClipRecord]) -> int:
    """Measure the clips that `folder` lacks, each process its share; returns when all are there.

    Args:
        num_clips (`int`): How many there are.
        folder (`Path`): Opened by `animation.open_frames`, seen by all processes.
        record (`Callable`): Measures the clip of that number.
    Returns:
        `int`: How many were missing.
    """
    state = PartialState()
    missing = [index for index in range(num_clips) if not record_path(folder, index).exists()]
    state.wait_for_everyone()  # until all have looked: the shares are those of one list
    share = missing[state.process_index :: state.num_processes]
    for index in tqdm(share, desc="clips", unit="clip", disable=not state.is_main_process):
        record(index).save(record_path(folder, index))
    state.wait_for_everyone()
    return len(missing)


def record_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}{SUFFIX}"


def join_features(records: list[ClipRecord]) -> dict[str, dict[str, torch.Tensor]]:
    """The sets' features of all clips together, by metric and set, shape `[N, D]`; what one clip lacks is left out."""
    first, *others = [record.features for record in records]
    return {
        metric: {
            name: torch.cat([features[metric][name] for features in (first, *others)])
            for name in by_set
            if all(name in features.get(metric, {}) for features in others)
        }
        for metric, by_set in first.items()
    }
