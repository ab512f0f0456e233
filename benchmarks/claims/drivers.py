# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Drawn drivers of other sizes, places and proportions than the subject they drive, in the subject's own motion."""

from dataclasses import replace

import numpy as np
from PIL import Image

from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_figure import FIGURE_HEIGHT
from training.data.procedural_scene import Frame, Motion, Subject, render_clip


PIXELS, CANVAS = 2, 1.25  # of a driver's pictures: times the sides of the photo, and times its sides at that size
SIZES = 0.6, 1.2  # of a driver in its picture, relative to the photo's
OFF = 0.1, 0.3  # how far the proportions of the last two drivers are off, up or down
WIDTHS, LENGTHS = ("shoulder", "waist", "hip", "limb"), ("arm_length", "leg_length", "torso_length")
CASES = ("in place", "same body", "another body", "widths off", "widths and lengths off")


def proportions_off(subject: Subject, names: tuple[str, ...], rng: np.random.Generator) -> Subject:
    """Return a subject some of whose proportions are larger or smaller by a share within `OFF`."""
    factors = 1 + rng.uniform(*OFF, len(names)) * rng.choice([-1, 1], len(names))
    return replace(subject, **{name: getattr(subject, name) * f for name, f in zip(names, factors, strict=True)})


def film(subject: Subject, motion: Motion, width: int, height: int, rng: np.random.Generator) -> list[Image.Image]:
    """Draw the IUV pictures of a driver at a random size and place, whole in every frame."""
    side = round(PIXELS * height * rng.uniform(*SIZES))
    # Two drawings, the second half a figure higher, so that the feet of tall drivers are in the picture.
    lower = round(side / 2)
    raised = replace(motion, root_y=motion.root_y - lower / (side * FIGURE_HEIGHT))
    drawn = [[frame.iuv for frame in render_clip(subject, m, side, round(1.3 * side))] for m in (motion, raised)]
    clip = np.stack([np.concatenate([upper, rest[side - lower :]]) for upper, rest in zip(*drawn, strict=True)])
    _, y, x = np.nonzero(clip[..., 2])
    bodies = clip[:, y.min() : y.max() + 1, x.min() : x.max() + 1]
    size = np.maximum(CANVAS * PIXELS * np.array([height, width]), np.array(bodies.shape[1:3]) + 2).astype(int)
    top, left = (int(rng.integers(1, room)) for room in size - bodies.shape[1:3])
    pictures = np.zeros((len(clip), *size, 3), np.uint8)
    pictures[:, top : top + bodies.shape[1], left : left + bodies.shape[2]] = bodies
    return [Image.fromarray(picture) for picture in pictures]


def drive(config: ProceduralFashionConfig, index: int) -> tuple[list[Frame], dict[str, list[Image.Image]]]:
    """Return the true frames of a subject's clip and the poses of each case's driver."""
    subject, motion = config.subject("test", index), config.motion("test", index)
    rng = np.random.default_rng([config.seed, index])
    truth = render_clip(subject, motion, config.height, config.width)
    drivers = {
        "same body": subject,
        "another body": config.subject("test", (index + 1) % config.num_test),
        "widths off": proportions_off(subject, WIDTHS, rng),
        "widths and lengths off": proportions_off(subject, WIDTHS + LENGTHS, rng),
    }
    poses = {case: film(body, motion, config.width, config.height, rng) for case, body in drivers.items()}
    return truth, {"in place": [Image.fromarray(frame.iuv) for frame in truth]} | poses
