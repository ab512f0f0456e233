# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""One trial of stage 2: learn a drawn subject from its photos and measure it in other poses.

Stage 1 never saw the subject. It is measured in two motions, that of its own clip and a full turn. The reference is
always its photo from the front.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.scripts import count
from pipeline_dreampose import DreamPosePipeline
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashion, ProceduralFashionConfig
from training.data.procedural_scene import Frame, Motion, render_clip
from training.hub.repositories import default_size
from training.metrics.baselines import measure, to_tensor, vae_round_trip
from training.models.base_pipeline import load_subject_base
from training.models.lora import build_lora_configs
from training.subject.phases import train_subject
from training.subject.photos import IUV_ENDING, SubjectPairs, load_photos, open_pairs
from training.subject.textured_clips import pairs_of_clips


VIEWS = {"front": 0.0, "back": np.pi, "left": np.pi / 2, "right": -np.pi / 2}  # yaw angle of each photo
BACK = -0.5  # a frame shows the back if the cosine of its yaw is below this
OWN_FRAMES, TURN_FRAMES = (5, 7, 9, 12), (5, 7, 9, 11)
RECORDS_VERSION = f"1, drawing {ProceduralFashion.BUILDER_CONFIGS[0].version}"  # raise it when the figures change
_TURN_POSITION = 1000  # first motion that becomes a turn, after those of the clips
_CLIP_POSITION = 2000  # first motion of the true clips


def add_subject_options(parser: argparse.ArgumentParser, work_dir: Path) -> None:
    """Add the options of the benchmarks that measure drawn subjects one by one."""
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help="pipeline folder or Hub id")
    add("--split", choices=("validation", "test"), default="test", help="split of the drawn subjects")
    add("--num_subjects", type=count, default=20, help="number of subjects to measure")
    add("--first_subject", type=int, default=0, help="number of the first subject")
    add("--num_inference_steps", type=count, help="denoising steps per frame (default: the model's own)")
    add("--num_processes", type=count, default=os.cpu_count(), help="jobs that run at the same time, one thread each")
    add("--work_dir", type=Path, default=work_dir, help="folder that keeps a file for each finished job")


def numbers_of_subjects(options: argparse.Namespace) -> range:
    """Return the numbers of the chosen subjects. Raise a `ValueError` if there are none, or some are negative."""
    for name, least in (("num_subjects", 1), ("first_subject", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"`{name}` must be {least} or more, got {getattr(options, name)}.")
    return range(options.first_subject, options.first_subject + options.num_subjects)


@dataclass(frozen=True)
class Trial:
    """Everything that one process needs to run a trial, in plain values."""

    model: str  # folder or Hub id of the pipeline of stage 1
    digest: str  # hash of its weights and settings, from `training.media.animation.model_digest`
    split: str  # of the drawn subjects, `validation` or `test`
    index: int  # number of the subject
    num_photos: int  # 1 (front) to 4 (front, back and both sides)
    pairs: dict[str, Any]  # keyword arguments of `PairSettings`
    prior: tuple[str | None, float, int]  # data set of other subjects, its share, and number of textured clips
    lora: dict[str, Any] | None  # keyword arguments of `build_lora_configs`; `None` trains all weights
    phases: dict[str, dict[str, Any]]  # phase -> keyword arguments of `training.engine.loop.train`, without folders
    loss: dict[str, Any]  # keyword arguments of `StageOneLoss`
    num_cached_crops: int  # argument of `train_subject`
    num_inference_steps: int | None  # of all predictions, by default those that the model stores
    num_clips: int = 0  # number of true clips of the subject, which take the place of textured clips


@dataclass(frozen=True)
class Footage:
    """A subject in motion: the poses of all frames, and the targets and layers of the measured frames."""

    iuv: list[Image.Image]
    frame_indices: list[int]
    targets: list[Image.Image]
    layers: list[Image.Image]
    shows_back: list[bool]

    @classmethod
    def of(cls, frames: Sequence[Frame], yaw: np.ndarray, frame_indices: Sequence[int]) -> "Footage":
        """Build footage from drawn frames and their yaw angles. The frames at `frame_indices` are measured."""
        measured = [frames[i] for i in frame_indices]
        return cls(
            iuv=[Image.fromarray(frame.iuv) for frame in frames],
            frame_indices=list(frame_indices),
            targets=[Image.fromarray(frame.image) for frame in measured],
            layers=[Image.fromarray(frame.layers) for frame in measured],
            shows_back=[bool(np.cos(yaw[i]) < BACK) for i in frame_indices],
        )


def drawing_of(model: str) -> ProceduralFashionConfig:
    """Return the drawing of figures at the size of a model's frames."""
    return ProceduralFashionConfig("figures", **dict(zip(("width", "height"), default_size(model))))


def standing_motion(rng: np.random.Generator, yaw: float) -> Motion:
    """Return the motion of a person who stands still for a photo: arms slightly away from the body, cloth at rest."""
    still, both = np.zeros(2), np.zeros((2, 2))  # two frames, because the renderer needs accelerations
    return Motion(
        yaw=still + yaw + rng.uniform(-0.2, 0.2),
        root_x=still,
        root_y=still,
        arm_raise=both + rng.uniform(0.12, 0.5, 2),
        arm_swing=both,
        elbow=both + rng.uniform(0.05, 0.4, 2),
        leg_swing=both,
        knee=both + 0.05,
    )


def turning_motion(config: ProceduralFashionConfig, split: str, index: int) -> Motion:
    """Return a motion of the split that turns once around, so that every subject is seen from behind."""
    motion = config.motion(split, _TURN_POSITION + index)
    progress = np.clip(np.arange(-motion.pre_roll, len(motion)) / (len(motion) - 1), 0, 1)
    return replace(motion, yaw=2 * np.pi * progress)


def draw_photos(config: ProceduralFashionConfig, split: str, index: int, num_photos: int) -> list[Frame]:
    """Draw photos of the standing subject: front, back, left and right, in this order."""
    rng, subject = np.random.default_rng([7, index]), config.subject(split, index)
    motions = [standing_motion(rng, yaw) for yaw in list(VIEWS.values())[:num_photos]]
    return [render_clip(subject, motion, config.height, config.width, [0])[0] for motion in motions]


def draw_footage(config: ProceduralFashionConfig, split: str, index: int) -> list[Footage]:
    """Draw the subject in its own motion and in a turn."""
    subject, footage = config.subject(split, index), []
    motions = {OWN_FRAMES: config.motion(split, index), TURN_FRAMES: turning_motion(config, split, index)}
    for frame_indices, motion in motions.items():
        frames = render_clip(subject, motion, config.height, config.width)
        footage.append(Footage.of(frames, motion.yaw[motion.pre_roll :], frame_indices))
    return footage


class Examination:
    """Measure a pipeline in new poses and in the photos' poses, always from the first photo and the same noise."""

    def __init__(
        self,
        pipeline: DreamPosePipeline,
        photos: Sequence[Frame],
        footage: Sequence[Footage],
        num_inference_steps: int | None,
    ):
        self.pipeline, self.num_inference_steps = pipeline, num_inference_steps
        pipeline.set_progress_bar_config(disable=True)
        self.reference = Image.fromarray(photos[0].image)
        indices = range(len(photos))
        self.footage = {"new": footage, "photos": [Footage.of(photos, np.zeros(len(photos)), indices)]}
        self.latents: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def sample_new(self) -> torch.Tensor:
        """Sample the frames in poses that no photo shows; shape [N,3,H,W], range [0, 1]."""
        return self.pipeline.decode_latents(torch.cat([self._sample(part, False) for part in self.footage["new"]]))

    @torch.no_grad()
    def denoise(self) -> dict[str, dict[str, float]]:
        """Sample and measure the frames with their true windows, with still windows, and in the photos' poses."""
        for name, kind, is_still in (("all", "new", False), ("still_window", "new", True), ("photos", "photos", True)):
            self.latents[name] = torch.cat([self._sample(footage, is_still) for footage in self.footage[kind]])
        return self.decode()

    @torch.no_grad()
    def decode(self) -> dict[str, dict[str, float]]:
        """Decode the latents of the last sampling with the current decoder, and measure the frames."""
        truth = {
            kind: [[x for part in footage for x in getattr(part, name)] for name in ("targets", "layers")]
            for kind, footage in self.footage.items()
        }
        frames = {name: self.pipeline.decode_latents(latents) for name, latents in self.latents.items()}
        shows_back = torch.tensor([back for part in self.footage["new"] for back in part.shows_back])
        backs = [[x for x, is_back in zip(values, shows_back) if is_back] for values in truth["new"]]
        return {
            "all": measure(frames["all"], *truth["new"]),
            "back": measure(frames["all"][shows_back], *backs),
            "still_window": measure(frames["still_window"], *truth["new"]),
            "photos": measure(frames["photos"], *truth["photos"]),
            "vae_round_trip": measure(vae_round_trip(self.pipeline, to_tensor(truth["new"][0])), *truth["new"]),
        }

    def _sample(self, footage: Footage, is_still: bool) -> torch.Tensor:
        iuv, indices = footage.iuv, footage.frame_indices
        if is_still:
            # each pose five times, so that the centre pose fills its window
            iuv, indices = [iuv[i] for i in indices for _ in range(5)], list(range(2, 5 * len(indices), 5))
        return self.pipeline(
            self.reference,
            iuv,
            frame_indices=indices,
            num_inference_steps=self.num_inference_steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames[0]


def run_trial(trial: Trial) -> list[dict]:
    """Train one subject and measure it, before training and at every validation of its phases.

    Returns records of `phase`, `step` and `figures` by group and metric, in the order of training.
    """
    config = drawing_of(trial.model)
    photos = draw_photos(config, trial.split, trial.index, trial.num_photos)
    pipeline = load_subject_base(trial.model, height=config.height, width=config.width)
    footage = draw_footage(config, trial.split, trial.index)
    examination = Examination(pipeline, photos, footage, trial.num_inference_steps)
    records = [{"phase": "before", "step": 0, "figures": examination.denoise()}]

    def recorder(phase, examine):
        def record(module, step):
            records.append({"phase": phase, "step": step, "figures": examine()})
            return {}

        return record

    with tempfile.TemporaryDirectory() as folder:
        samples = _open_pairs(trial, pipeline, photos, Path(folder) / "photos")
        examine = {"denoiser": examination.denoise, "decoder": examination.decode}
        arguments = {
            phase: values | {"output_dir": Path(folder) / phase, "validate": recorder(phase, examine[phase])}
            for phase, values in trial.phases.items()
        }
        configs = None if trial.lora is None else build_lora_configs(**trial.lora)
        numbers = {"num_cached_crops": trial.num_cached_crops}
        numbers["num_textured_clips"] = 0 if trial.num_clips else trial.prior[2]
        train_subject(Accelerator(cpu=True), pipeline, samples, arguments, configs, trial.loss, **numbers)
    return records


def _open_pairs(trial: Trial, pipeline: DreamPosePipeline, photos: Sequence[Frame], folder: Path) -> SubjectPairs:
    """Write the photos and read them as `training/finetune.py` does; return samples of them, prior and true clips."""
    folder.mkdir()
    for number, frame in enumerate(photos):
        Image.fromarray(frame.image).save(folder / f"photo{number}.png")
        Image.fromarray(frame.iuv).save(folder / f"photo{number}{IUV_ENDING}.png")
    seed = next(iter(trial.phases.values()))["seed"]
    pairs = open_pairs(pipeline, load_photos(folder), seed, PairSettings(**trial.pairs), *trial.prior[:2])
    if trial.num_clips:
        clips = draw_clips(drawing_of(trial.model), trial.split, trial.index, trial.num_clips)
        pairs.textured = pairs_of_clips(pairs, clips)
    return pairs


def draw_clips(
    config: ProceduralFashionConfig, split: str, index: int, num_clips: int
) -> list[list[tuple[Image.Image, Image.Image]]]:
    """Draw the frames and IUV pictures of the subject in motions that are not measured."""
    first = _CLIP_POSITION + index * num_clips
    clips = [config.clip(split, index, first + number) for number in range(num_clips)]
    return [[(Image.fromarray(frame.image), Image.fromarray(frame.iuv)) for frame in clip] for clip in clips]
