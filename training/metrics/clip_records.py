# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Records of measured clips, saved one by one: processes share the clips, and a stopped evaluation resumes."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from pipeline_dreampose import DreamPosePipeline
from training.engine.messages import one_line
from training.media.settings_file import partial_path
from training.metrics import baselines
from training.metrics.baselines import to_tensor
from training.metrics.clips import Clip
from training.metrics.learned import VIDEO_LENGTH, LearnedMetrics


SUFFIX = ".safetensors"
SHOWN = ("own", "other_photo", "warp", "run own", "run warp")  # predictions on the evaluation's page


@dataclass(frozen=True)
class ClipRecord:
    """Figures, features and pictures of one clip.

    `values` holds figures by row and metric, `moved` comes from the clip. `features` holds the features for FID and
    FVD by metric and set, shape `[B, D]`. `pictures` holds the predictions to show, uint8 `[T, 3, H, W]`: those of the
    targets under their names, those of the consecutive frames as `run NAME`.
    """

    values: dict[str, dict[str, float]]
    moved: list[bool] = field(default_factory=list)
    features: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a safetensors file; it gets its name only when it is complete."""
        tensors = {f"pictures/{name}": value for name, value in self.pictures.items()}
        tensors |= {f"features/{m}/{name}": v for m, by_set in self.features.items() for name, v in by_set.items()}
        partial = partial_path(path)
        facts = {"values": self.values, "moved": self.moved}
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"facts": json.dumps(facts)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "ClipRecord":
        """Read a file that `save` wrote, or raise a `ValueError` if it is damaged."""
        try:
            with safe_open(path, "pt") as file:
                record = cls(**json.loads(file.metadata()["facts"]))
                for key in file.keys():
                    kind, *names = key.split("/")
                    place = record.pictures if kind == "pictures" else record.features.setdefault(names[0], {})
                    place[names[-1]] = file.get_tensor(key)
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"`resume` must find the clips as they were written, got {str(path)!r}, which is damaged; delete it:"
                f" {one_line(error, 200)}"
            ) from error
        return record


def record_clip(
    pipe: DreamPosePipeline, clip: Clip, seed: int, learned: LearnedMetrics, keep_pictures: bool, **call_options
) -> ClipRecord:
    """Make all predictions of a clip, see [`baselines.predict_clip`], and measure them.

    With `keep_pictures` the record holds the pictures that the evaluation's page shows.
    """
    predictions = baselines.predict_clip(pipe, clip, seed, **call_options)
    run = baselines.predict_run(pipe, clip, seed, predictions["own"], **call_options)
    truths = {"own": (clip.targets, clip.layers), "other": (clip.other_targets, clip.other_layers)}
    values = {}
    for row, (name, truth) in baselines.ROWS.items():
        if name not in predictions or truths[truth][0] is None:
            continue
        compared = (predictions[name], *truths[truth])
        # The matches belong to the clip's own photo; the other subject's photo shows other parts of the body.
        matches = None if name == "other_photo" else [clip.match(i) for i in clip.frame_indices]
        values[row] = baselines.measure(*compared)
        values[row] |= baselines.measure_regions(*compared, [clip.iuv[i] for i in clip.frame_indices], matches)
        values[row] |= learned.measure(predictions[name], to_tensor(truths[truth][0]))
        if name in run:
            values[row] |= baselines.measure_run(run[name], clip.run_targets, clip.run_layers)
    made = predictions | {f"run {name}": frames for name, frames in run.items()} if keep_pictures else {}
    pictures = {name: made[name].mul(255).round().byte() for name in SHOWN if name in made}
    return ClipRecord(values, list(clip.moved or ()), _set_features(learned, clip, predictions, run), pictures)


def _set_features(
    learned: LearnedMetrics, clip: Clip, predictions: dict[str, torch.Tensor], run: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Compute features of predictions and truths, by metric and set."""
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


def measure_clips(num_clips: int, folder: Path, record: Callable[[int], ClipRecord]) -> int:
    """Measure the clips that `folder` lacks with `record`, shared between the processes; return their number.

    All processes see `folder`, which `animation.open_frames` opened, and return when all clips are measured.
    """
    state = PartialState()
    missing = [index for index in range(num_clips) if not record_path(folder, index).exists()]
    state.wait_for_everyone()  # nobody writes before all have listed the missing clips
    share = missing[state.process_index :: state.num_processes]
    for index in tqdm(share, desc="clips", unit="clip", disable=not state.is_main_process):
        record(index).save(record_path(folder, index))
    state.wait_for_everyone()
    return len(missing)


def record_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}{SUFFIX}"


def share_moved(records: list[ClipRecord]) -> float | None:
    """Return the share of the targets that are far from the photo's pose, or `None` if that is not known."""
    moved = [is_moved for record in records for is_moved in record.moved]
    return sum(moved) / len(moved) if moved else None


def join_features(records: list[ClipRecord]) -> dict[str, dict[str, torch.Tensor]]:
    """Join the features of all clips by metric and set, shape `[N, D]`; sets that some clip lacks are left out."""
    features = [record.features for record in records]
    return {
        metric: {
            name: torch.cat([by_metric[metric][name] for by_metric in features])
            for name in by_set
            if all(name in by_metric.get(metric, {}) for by_metric in features)
        }
        for metric, by_set in features[0].items()
    }
