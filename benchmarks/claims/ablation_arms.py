# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Training and measurement of the ablation's arms. Each arm is a short stage 1 with one change.

All arms use the frozen encoders of one pipeline, as in the paper, and an untrained UNet and adapter. All arms see the
same samples in the same order. The seed of an arm determines its initial weights, its samples and its noise.
"""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.latent_cache import FrameEncoders, precompute_latents
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashion, load_procedural_fashion
from training.data.samples import load_prepared
from training.hub.repositories import load_pipeline
from training.metrics.baselines import measure, measure_regions, measure_run, sample_frames, to_tensor
from training.metrics.clips import Clip, Clips, load_clips
from training.models.small_model import build_pipeline


ROOT = Path(__file__).parents[2]
SCHEDULE = Path(__file__).with_name("ablation.yaml")
UNET_CHANNELS = [32, 64, 96]
NO_DROPOUT = ("image_dropout_prob", "pose_dropout_prob", "joint_dropout_prob")
ARMS = {  # name -> options that differ from the schedule
    "full": {},
    "clip_only": {"train_adapter": False},
    "one_pose": {"pose_radius": 0},
    "no_dropout": dict.fromkeys(NO_DROPOUT, 0.0),
}
SCALES = {"guided": [2.0, 2.0], "unguided": [1.0, 1.0]}  # photo, pose


@dataclass(frozen=True)
class Held:
    """First clips of the drawn test split, which are measured, and the denoising steps of all predictions."""

    num_clips: int
    frames_per_clip: int
    num_consecutive: int
    num_inference_steps: int

    def clips(self) -> Clips:
        chosen = self.num_clips, self.frames_per_clip
        return load_clips("procedural", "test", *chosen, num_consecutive=self.num_consecutive)


def encoders_of(pipe: DreamPosePipeline) -> FrameEncoders:
    """Return the parts of a pipeline that all arms use."""
    return FrameEncoders(pipe.vae, pipe.image_encoder, pipe.feature_extractor)


def arm_settings(pipe: DreamPosePipeline) -> dict[str, Any]:
    """Return everything that all arms depend on, apart from the options: encoders, schedule, arms and drawing."""
    facts = {"encoders": encoders_of(pipe).facts(), "schedule": yaml.safe_load(SCHEDULE.read_text()), "arms": ARMS}
    drawing = str(ProceduralFashion.BUILDER_CONFIGS[0].version)
    return facts | {"scales": SCALES, "unet_channels": UNET_CHANNELS, "drawing": drawing}


def draw_data(model: str, work_dir: Path, num_train: int) -> None:
    """Draw the first clips of the training split into `data`, and encode their frames once for all arms."""
    parquet = work_dir / "data" / "train.parquet"
    if not parquet.exists():
        parquet.parent.mkdir(parents=True, exist_ok=True)
        part = parquet.with_suffix(".part")
        load_procedural_fashion(num_train=num_train).to_parquet(part)
        part.rename(parquet)
    pipe = load_pipeline(model, "cpu")
    size = pipe.config.default_height, pipe.config.default_width
    dataset, shape = load_prepared(str(parquet.parent), "train"), LatentShape.of(pipe.vae, *size)
    pairs = FramePairs(dataset, shape, 0, PairSettings(reference_frames="first"))
    precompute_latents(work_dir / "latents", pairs, encoders_of(pipe))


def train_arm(model: str, arm: str, seed: int, work_dir: Path, schedule: dict[str, Any]) -> Path:
    """Train an arm with `training/train.py`, from its newest checkpoint if it was stopped, and return its folder.

    The seed determines the initial weights, the samples and their noise. The schedule replaces options of
    `ablation.yaml`. If the training fails, a `RuntimeError` points to its output in `log.txt`.
    """
    output = work_dir / f"{arm}-{seed}"
    if (output / "model_index.json").exists():
        return output
    changes = {"seed": seed} | schedule | ARMS[arm]
    pose_radius = changes.get("pose_radius", 2)
    output.mkdir(parents=True, exist_ok=True)
    base = load_pipeline(model, "cpu")
    torch.manual_seed(seed)
    size = base.config.default_height, base.config.default_width
    start = build_pipeline(base.vae, base.image_encoder, *size, tuple(UNET_CHANNELS), pose_radius)
    start.save_pretrained(output / "start")
    flags = {
        "config": SCHEDULE,
        "pretrained_model_name_or_path": output / "start",
        "train_data": work_dir / "data",
        "latent_cache_dir": work_dir / "latents",
        "output_dir": output,
        **changes,
    }
    command = [sys.executable, str(ROOT / "training" / "train.py")]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (output / "log.txt").open("a") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    if code:
        raise RuntimeError(f"{arm} with seed {seed} ended with code {code}: see {output / 'log.txt'}.")
    return output


def run_arm(
    model: str, arm: str, seed: int, work_dir: str, schedule: dict[str, Any], held: Held
) -> dict[str, list[dict[str, float]] | float]:
    """Train an arm and measure it with each entry of `SCALES`. Its CPU time counts from the last start."""
    before = children_cpu_seconds()
    folder = train_arm(model, arm, seed, Path(work_dir), schedule)
    pipe = load_pipeline(str(folder), "cpu")
    pipe.set_progress_bar_config(disable=True)
    results = {"training_cpu_seconds": round(children_cpu_seconds() - before, 1)}
    for name, (image_scale, pose_scale) in SCALES.items():
        scales = {"image_guidance_scale": image_scale, "pose_guidance_scale": pose_scale}
        results[name] = [measure_clip(pipe, clip, i, held, **scales) for i, clip in enumerate(held.clips())]
    return results


def children_cpu_seconds() -> float:
    """Return the user and system CPU time of all finished child processes."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def measure_clip(pipe: DreamPosePipeline, clip: Clip, seed: int, held: Held, **call_options) -> dict[str, float]:
    """Measure the targets of one clip, their regions and the consecutive frames, all sampled from the same noise."""
    options = {"num_inference_steps": held.num_inference_steps, "guidance_stop": 1.0, **call_options}
    indices = sorted({*clip.frame_indices, *clip.run_indices})
    frames = sample_frames(pipe, clip.reference, clip.iuv, indices, clip.targets[0].size, seed, **options)
    own, run = (frames[[indices.index(i) for i in chosen]] for chosen in (clip.frame_indices, clip.run_indices))
    iuv = [clip.iuv[i] for i in clip.frame_indices]
    values = measure(own, clip.targets, clip.layers) | measure_regions(own, clip.targets, clip.layers, iuv)
    return values | measure_run(run, clip.run_targets, clip.run_layers)


def compare_noise(model: str, held: Held) -> dict[str, list[dict[str, float]]]:
    """Measure consecutive frames that share one noise sample, and frames that each have their own."""
    pipe = load_pipeline(model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, list] = {"shared_noise": [], "independent_noise": []}
    for seed, clip in enumerate(held.clips()):
        _, image_latents = pipe.encode_image(to_tensor([clip.reference]) * 2 - 1)
        shape = (len(clip.iuv), *image_latents.shape[1:])  # the pipeline takes `latents` for one or all frames
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        where = clip.reference, clip.iuv, clip.run_indices, clip.run_targets[0].size, seed
        for name, draw in (("shared_noise", noise[:1]), ("independent_noise", noise)):
            latents = start_from(pipe, image_latents, draw, held.num_inference_steps)
            options = {"num_inference_steps": held.num_inference_steps, "guidance_stop": 1.0, "latents": latents}
            frames = sample_frames(pipe, *where, **options)
            values = measure(frames, clip.run_targets, clip.run_layers)
            results[name].append(values | measure_run(frames, clip.run_targets, clip.run_layers))
    return results


def start_from(
    pipe: DreamPosePipeline, image_latents: torch.Tensor, noise: torch.Tensor, num_inference_steps: int
) -> torch.Tensor:
    """Return `latents` that make the pipeline start from the given unit noise instead of its own.

    The start is the photo's latents with the noise of the first timestep. `image_latents` are scaled and have shape
    `(1, C, h, w)`. `noise` and the result have shape `(F, C, h, w)`, or `(1, C, h, w)` for all frames.
    """
    pipe.scheduler.set_timesteps(num_inference_steps)
    start = pipe.scheduler.add_noise(image_latents.expand_as(noise), noise, pipe.scheduler.timesteps[:1])
    return start / pipe.scheduler.init_noise_sigma
