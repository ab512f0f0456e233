# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""How frames of a clip become a sample: settings that samples, latent caches and options share."""

from dataclasses import dataclass

from training.data.augmentation import FITS


REFERENCE_FRAMES = ("any", "first")
BAD_ROWS = ("raise", "skip")


@dataclass(frozen=True)
class PairSettings:
    """How frames of a clip become a sample.

    Args:
        pose_radius (`int`, *optional*, defaults to 2): Poses on each side of the target's in its window.
        reference_frames (`str`, *optional*, defaults to `"any"`):
            Which frame of a video is the reference: `"any"`, all alike, or its `"first"`.
        max_reference_distance (`int`, *optional*):
            With `"any"`: the reference is drawn, all alike, from the frames at most so many from the target.
        fit (`str`, *optional*, defaults to `"whole"`):
            How a picture of another aspect is laid on the canvas: `"whole"`, with its borders continued outwards, or
            `"crop"`, its middle filling the canvas.
        min_crop_scale (`float`, *optional*, defaults to 1.0):
            Below 1, target and poses show one random part of the canvas, enlarged, with at least so much of its
            sides; the reference does not, since it is the photo, which is to hold all that a target may show.
        noise_offset (`float`, *optional*, defaults to 0): Scale of noise that is constant over a channel.
        bad_rows (`str`, *optional*, defaults to `"raise"`):
            What becomes of a sample with an unreadable picture, a gap in its window or a map that does not fit its
            picture: an error, or, with `"skip"`, the sample of the next row in the order of the epoch.
    Raises:
        ValueError: If one of them is none of these.
    """

    pose_radius: int = 2
    reference_frames: str = "any"
    max_reference_distance: int | None = None
    fit: str = "whole"
    min_crop_scale: float = 1.0
    noise_offset: float = 0.0
    bad_rows: str = "raise"

    def check_cacheable(self) -> None:
        """Raise a `ValueError` if a latent cache cannot hold what samples show."""
        if self.min_crop_scale < 1:
            raise ValueError(
                "`min_crop_scale` must be 1 with `latent_cache_dir`, since a crop has latents of its own, got"
                f" {self.min_crop_scale}."
            )

    def __post_init__(self):
        choices = {"reference_frames": REFERENCE_FRAMES, "fit": FITS, "bad_rows": BAD_ROWS}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {', '.join(values)}, got {getattr(self, name)!r}.")
        if self.pose_radius < 0:
            raise ValueError(f"`pose_radius` must be at least 0, got {self.pose_radius}.")
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"`min_crop_scale` must be within (0, 1], got {self.min_crop_scale}.")
        distance = self.max_reference_distance
        if distance is not None and (distance < 0 or self.reference_frames != "any"):
            raise ValueError(
                "`max_reference_distance` must be at least 0, and none unless `reference_frames` is any, got"
                f" {distance} with {self.reference_frames}."
            )
