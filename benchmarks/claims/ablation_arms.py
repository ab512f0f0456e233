# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The arms of the ablation: each a short stage 1 with one thing changed, measured on held-out clips.

All arms start from the encoders of one pipeline, frozen as the paper's are, with an untrained UNet and adapter, and
see the same samples in the same order; an arm's seed is that of its weights, its samples and its noise.
"""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
ARMS = {  # name -> what it changes of the schedule
    "full": {},
    "clip_only": {"train_adapter": False},
    "one_pose": {"pose_radius": 0},
    "no_dropout": dict.fromkeys(NO_DROPOUT, 0.0),
}
DRAWING = str(ProceduralFashion.BUILDER_CONFIGS[0].version)
SCALES = {"guided": [2.0, 2.0], "unguided": [1.0, 1.0]}  # photo, pose


@dataclass(frozen=True)
class Held:
    """What is measured on: the first clips of the drawn test split.

    Args:
        num_clips (`int`): How many.
        frames_per_clip (`int`): Target frames of each.
        num_consecutive (`int`): Frames of each that follow one another.
        num_inference_steps (`int`): Of all predictions.
    """

    num_clips: int
    frames_per_clip: int
    num_consecutive: int
    num_inference_steps: int

    def clips(self) -> Clips:
        return load_clips(
            "procedural", "test", self.num_clips, self.frames_per_clip, num_consecutive=self.num_consecutive
        )


def encoders_of(pipe: DreamPosePipeline) -> FrameEncoders:
    """What all arms take of a pipeline."""
    return FrameEncoders(pipe.vae, pipe.image_encoder, pipe.feature_extractor)


def draw_data(model: str, work_dir: Path, num_train: int) -> None:
    """Draw the first clips of the training split and encode their frames once for all arms.

    Args:
        model (`str`): The pipeline whose encoders are taken.
        work_dir (`Path`): Gets `data/train.parquet` and `latents`.
        num_train (`int`): How many clips.
    """
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
    """Train an arm by `training/train.py`, from its newest checkpoint if it was stopped.

    Args:
        model (`str`): The pipeline whose encoders are taken.
        arm (`str`): A key of `ARMS`.
        seed (`int`): Of the weights before, the samples and their noise.
        work_dir (`Path`): Where `draw_data` was.
        schedule (`dict`): Changes of `ablation.yaml`.
    Returns:
        `Path`: The folder of the trained pipeline.
    Raises:
        RuntimeError: If the training failed; its words are in `log.txt` beside its checkpoints.
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
    """Train an arm and measure it.

    Args:
        model, arm, seed: As `train_arm` takes them.
        work_dir (`str`): Likewise, a folder.
        schedule (`dict`): Likewise.
        held (`Held`): What is measured on.
    Returns:
        `dict`: By key of `SCALES` the figures of each clip, and `training_cpu_seconds` (of the part after the last
            start, where it was stopped).
    """
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
    """What the processes that this one started and that have ended took of the CPU."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def measure_clip(pipe: DreamPosePipeline, clip: Clip, seed: int, held: Held, **call_options) -> dict[str, float]:
    """The figures of one clip: its targets, parts of them, and its consecutive frames, all from one draw of noise."""
    options = {"num_inference_steps": held.num_inference_steps, **call_options}
    indices = sorted({*clip.frame_indices, *clip.run_indices})
    frames = sample_frames(pipe, clip.reference, clip.iuv, indices, clip.targets[0].size, seed, **options)
    own, run = (frames[[indices.index(i) for i in chosen]] for chosen in (clip.frame_indices, clip.run_indices))
    iuv = [clip.iuv[i] for i in clip.frame_indices]
    values = measure(own, clip.targets, clip.layers) | measure_regions(own, clip.targets, clip.layers, iuv)
    return values | measure_run(run, clip.run_targets, clip.run_layers)


def compare_noise(model: str, held: Held) -> dict[str, list[dict[str, float]]]:
    """Measure consecutive frames of a model from noise that all frames share and from noise of each frame's own.

    Args:
        model (`str`): The pipeline.
        held (`Held`): What is measured on.
    Returns:
        `dict`: `shared_noise` and `independent_noise`, the figures of each clip.
    """
    pipe = load_pipeline(model, "cpu")
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, list] = {"shared_noise": [], "independent_noise": []}
    for seed, clip in enumerate(held.clips()):
        _, image_latents = pipe.encode_image(to_tensor([clip.reference]) * 2 - 1)
        shape = (len(clip.iuv), *image_latents.shape[1:])  # `latents` are those of a clip's frames, of one or of all
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        where = clip.reference, clip.iuv, clip.run_indices, clip.run_targets[0].size, seed
        for name, draw in (("shared_noise", noise[:1]), ("independent_noise", noise)):
            latents = start_from(pipe, image_latents, draw, held.num_inference_steps)
            frames = sample_frames(pipe, *where, num_inference_steps=held.num_inference_steps, latents=latents)
            values = measure(frames, clip.run_targets, clip.run_layers)
            results[name].append(values | measure_run(frames, clip.run_targets, clip.run_layers))
    return results


def start_from(
    pipe: DreamPosePipeline, image_latents: torch.Tensor, noise: torch.Tensor, num_inference_steps: int
) -> torch.Tensor:
    """The pipeline's own start, the photo's latents noised to the first timestep, from given noise, as `latents`.

    Args:
        pipe (`DreamPosePipeline`): Gives the scheduler.
        image_latents (`torch.Tensor`): Of the photo, scaled, shape `(1, C, h, w)`.
        noise (`torch.Tensor`): Unit noise, shape `(F, C, h, w)`, or `(1, C, h, w)` for all frames.
        num_inference_steps (`int`): Which say where the first timestep lies.
    Returns:
        `torch.Tensor`: Shape of `noise`, for the pipeline's argument `latents`.
    """
    pipe.scheduler.set_timesteps(num_inference_steps)
    start = pipe.scheduler.add_noise(image_latents.expand_as(noise), noise, pipe.scheduler.timesteps[:1])
    return start / pipe.scheduler.init_noise_sigma
