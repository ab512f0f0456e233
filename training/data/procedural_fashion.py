# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Procedurally drawn fashion videos with exact DensePose IUV, as a `datasets` builder.

A clip shows one subject (proportions, skin, hair, clothes) in one motion (walking, turning, raising the arms). Hems
and long hair lag behind the body like damped pendulums: five poses show where they are, a single pose does not. IUV
covers only the body and tight clothing, like DensePose's. The first frame faces the camera.

Rows: `video_id`, `frame_index`, `image`, `iuv` (R = V, G = U, B = I), `layers` (see `procedural_figure`), `split`.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from training.data import frame_pairs, procedural_figure, procedural_scene
from training.data.procedural_scene import Frame, Motion, Subject, render_clip


SPLITS = ("train", "validation", "test")
_PRE_ROLL = 12  # frames simulated before the first, to set cloth and hair in motion
_SKIN = (
    np.array([[242, 214, 192], [226, 185, 150], [198, 150, 115], [160, 110, 78], [122, 80, 56], [86, 56, 40]]) / 255
)
_HAIR = np.array([[32, 26, 24], [66, 42, 28], [110, 70, 40], [150, 60, 36], [214, 176, 110], [150, 150, 156]]) / 255
_PATTERNS = ("plain", "horizontal", "vertical", "checks", "dots")


def _cloth_colors(rng: np.random.Generator) -> np.ndarray:
    """Draw two muted colours of one cloth, the second lighter or darker and of another hue; shape (2, 3)."""

    def rgb(hue, saturation, value):
        return value * (1 - saturation * np.clip(np.abs(np.mod(hue * 6 + np.array([0, 4, 2]), 6) - 3) - 1, 0, 1))

    hue, saturation, value = rng.uniform(), rng.uniform(0.25, 0.8), rng.uniform(0.3, 0.8)
    contrast = rng.uniform(0.22, 0.4) * (1 if value < 0.55 else -1)
    return np.stack([rgb(hue, saturation, value), rgb(hue + rng.normal(0, 0.12), saturation * 0.8, value + contrast)])


def sample_subject(rng: np.random.Generator) -> Subject:
    """Draw the looks of one subject at random."""
    background = np.clip(rng.uniform(0.88, 0.96) + rng.normal(0, 0.006, 3), 0, 1)
    skin = np.clip(_SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.94, 1.04), 0, 1)
    bottom = str(rng.choice(["trousers", "shorts", "skirt", "dress"], p=[0.24, 0.06, 0.35, 0.35]))
    top_colors = _cloth_colors(rng)
    patterns = rng.choice(_PATTERNS, size=2, p=[0.45, 0.2, 0.17, 0.09, 0.09])
    return Subject(
        background=background, skin=skin, hair=_HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.9, 1.1),
        lips=skin * 0.5 + np.array([0.36, 0.06, 0.1]), shoes=rng.uniform(0.08, 0.55, 3),
        hairline=rng.uniform(0.2, 0.3), hair_length=float(rng.choice([0.0, rng.uniform(0.16, 0.28)])),
        shoulder=rng.uniform(0.112, 0.13), waist=rng.uniform(0.08, 0.1), hip=rng.uniform(0.105, 0.122),
        limb=rng.uniform(0.9, 1.12), top_colors=top_colors, top_pattern=str(patterns[0]),
        bottom_colors=top_colors if bottom == "dress" else _cloth_colors(rng),
        bottom_pattern=str(patterns[0] if bottom == "dress" else patterns[1]),
        pattern_rows=rng.uniform(4.2, 5.6), pattern_count=int(rng.choice([8, 10])), sleeve=int(rng.integers(3)),
        bottom=bottom, skirt_length=rng.uniform(0.2, 0.36), skirt_flare=rng.uniform(0.05, 0.1),
    )  # fmt: skip


def sample_motion(rng: np.random.Generator, num_frames: int) -> Motion:
    """Draw one motion at random: walking with a sway, and in most clips a turn or raised arms."""
    time = np.arange(-_PRE_ROLL, num_frames, dtype=np.float64)
    kind = rng.choice(["turn", "arms", "both", "walk"], p=[0.35, 0.25, 0.3, 0.1])
    phase, step = rng.uniform(0, 2 * np.pi), 2 * np.pi / rng.uniform(7, 11)
    begin = rng.uniform(0, 3)
    progress = np.clip((time - begin) / (num_frames - 1 - begin), 0, 1)
    eased = progress * progress * (3 - 2 * progress)
    turn = (
        rng.choice([-1, 1]) * rng.uniform(np.pi / 2, 2 * np.pi) if kind in ("turn", "both") else rng.uniform(-0.5, 0.5)
    )
    raising = (
        rng.uniform(0.6, 1.9, 2) * (rng.uniform(size=2) < 0.8) if kind in ("arms", "both") else rng.uniform(0, 0.2, 2)
    )
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * progress[:, None] * rng.uniform(0.6, 1.6, 2))
    stride = step * time + phase
    both = np.stack([np.sin(stride), -np.sin(stride)], -1)
    return Motion(
        yaw=rng.uniform(-0.3, 0.3) + turn * eased,
        # The sway always moves the cloth, so that the pose window always carries information.
        root_x=rng.uniform(0.035, 0.06) * np.sin(step * time * rng.uniform(0.8, 1.3) + rng.uniform(0, 2 * np.pi)),
        root_y=0.006 * np.cos(2 * stride),
        arm_raise=rng.uniform(0.12, 0.4, 2) + raising * swing,
        arm_swing=-rng.uniform(0.05, 0.4) * both,
        elbow=rng.uniform(0.05, 0.5, 2) * (0.6 + 0.4 * swing),
        leg_swing=rng.uniform(0.05, 0.4) * both,
        knee=rng.uniform(0.1, 0.5) * np.clip(np.stack([np.cos(stride), -np.cos(stride)], -1), 0, None),
        pre_roll=_PRE_ROLL,
    )


@dataclass
class ProceduralFashionConfig(datasets.BuilderConfig):
    """Size and number of the drawn clips. `num_*` count clips; each has its own subject and motion."""

    height: int = 160
    width: int = 128
    num_frames: int = 16
    num_train: int = 2400
    num_validation: int = 16
    num_test: int = 64
    seed: int = 0

    def num_clips(self, split: str) -> int:
        return getattr(self, f"num_{split}")

    def subject(self, split: str, index: int) -> Subject:
        """Return the looks of subject `index` of a split; no two splits share a subject."""
        return sample_subject(np.random.default_rng([self.seed, SPLITS.index(split), 0, index]))

    def motion(self, split: str, index: int) -> Motion:
        """Return motion `index` of a split; no two splits share a motion."""
        return sample_motion(np.random.default_rng([self.seed, SPLITS.index(split), 1, index]), self.num_frames)

    def clip(self, split: str, subject_index: int, motion_index: int, frame_indices=None) -> list[Frame]:
        """Draw any subject of a split in any motion of the split (clip i of the data set is subject i in motion i)."""
        subject, motion = self.subject(split, subject_index), self.motion(split, motion_index)
        return render_clip(subject, motion, self.height, self.width, frame_indices)

    def counterpart(self, split: str, looks_index: int, index: int, frame_indices=None) -> list[Frame]:
        """Draw clip `index` with the looks of another subject: the ideal result for its photo and this clip's IUV.

        The body keeps the proportions of the clip, which are part of the pose, and so the clip's IUV.
        """
        looks, body = self.subject(split, looks_index), self.subject(split, index)
        subject = replace(looks, **{name: getattr(body, name) for name in ("shoulder", "waist", "hip", "limb")})
        return render_clip(subject, self.motion(split, index), self.height, self.width, frame_indices)


class ProceduralFashion(datasets.GeneratorBasedBuilder):
    """Procedurally drawn fashion videos with exact DensePose IUV; deterministic by `seed`."""

    BUILDER_CONFIG_CLASS = ProceduralFashionConfig
    BUILDER_CONFIGS = [
        ProceduralFashionConfig(name="tiny", version="1.3.0"),
        ProceduralFashionConfig(name="half", version="1.3.0", height=80, width=64),
        ProceduralFashionConfig(
            name="smoke", version="1.3.0", height=80, width=64, num_frames=6, num_train=6, num_validation=2, num_test=3
        ),
    ]
    DEFAULT_CONFIG_NAME = "tiny"

    def __init__(self, *args, **kwargs):
        # `datasets` caches by configuration only; the code's digest keeps drawings by older code from being reused.
        files = (__file__, procedural_figure.__file__, procedural_scene.__file__)
        digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
        super().__init__(*args, **{"hash": digest[:16]} | kwargs)

    def _info(self):
        features = {**frame_pairs.FEATURES, "layers": datasets.Image(), "split": datasets.Value("string")}
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(features))

    def _split_generators(self, dl_manager):
        indices = {split: list(range(self.config.num_clips(split))) for split in SPLITS}
        arguments = [{"split": split, "indices": chosen} for split, chosen in indices.items() if chosen]
        return [datasets.SplitGenerator(name=kwargs["split"], gen_kwargs=kwargs) for kwargs in arguments]

    def _generate_examples(self, split, indices):
        for index in indices:
            video_id = f"{split}-{index:06d}"
            for k, frame in enumerate(self.config.clip(split, index, index)):
                # `datasets` writes the arrays as PNG.
                yield f"{video_id}-{k:04d}", {"video_id": video_id, "frame_index": k, **vars(frame), "split": split}


def load_procedural_fashion(
    config_name: str = "tiny", split: str = "train", num_proc: int | None = None, **overrides
) -> datasets.Dataset:
    """Load one split from the cache of `datasets`, and draw it first if it is not there; one row per frame.

    Args:
        config_name (`str`, *optional*, defaults to `"tiny"`): `"tiny"`, `"half"` (half the height and width), or
            `"smoke"` (few clips of that size).
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        num_proc (`int`, *optional*): Number of drawing processes; by default one per core from 256 clips on.
        overrides: Fields of `ProceduralFashionConfig`.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
    # Draw only this split: an evaluation does not need the training split.
    others = {f"num_{other}": 0 for other in SPLITS if other != split}
    builder = ProceduralFashion(config_name=config_name, **(overrides | others))
    if num_proc is None and builder.config.num_clips(split) >= 256:
        num_proc = os.cpu_count()
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)
