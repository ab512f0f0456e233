# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The sample that the demo animates: a drawn subject's photo, and the IUV pictures of another subject's motion."""

from pathlib import Path

from PIL import Image

from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import render_clip


def write_sample(folder: Path, subject: int, motion: int, **fields: int) -> None:
    """Draw `photo.png`, `photo_iuv.png` and `poses/0000.png` and so on of the test split into a folder.

    `subject` and `motion` are numbers of the split. `fields` are those of [`ProceduralFashionConfig`], such as
    `num_frames`, `height` and `width`.
    """
    config = ProceduralFashionConfig(name="sample", **fields)
    photo = config.clip("test", subject, subject, [0])[0]
    (poses := folder / "poses").mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.image).save(folder / "photo.png")
    Image.fromarray(photo.iuv).save(folder / "photo_iuv.png")  # stage 2 reads it
    frames = render_clip(config.subject("test", subject), config.motion("test", motion), config.height, config.width)
    for index, frame in enumerate(frames):
        Image.fromarray(frame.iuv).save(poses / f"{index:04d}.png", optimize=True)
