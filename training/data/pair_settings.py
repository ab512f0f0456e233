# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Settings for making samples from frames, shared by samples, latent caches and options."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PairSettings:
    """How frames of a clip become a sample.

    Args:
        pose_radius (`int`, *optional*, defaults to 2): Poses on each side of the target's pose in its window.
        reference_frames (`str`, *optional*, defaults to `"any"`):
            The reference frame of a video: `"any"` frame, all equally likely, or the `"first"`.
        max_reference_distance (`int`, *optional*):
            With `"any"`: draw the reference only from the frames at most this far from the target.
        fit (`str`, *optional*, defaults to `"whole"`):
            How a picture of another aspect ratio fills the canvas: `"whole"`, with its borders extended outwards, or
            `"crop"`, by its middle only.
        min_crop_scale (`float`, *optional*, defaults to 1.0):
            Below 1, target and poses show the same random part of the canvas, enlarged, with at least this share of
            its sides. The reference is not cropped: as the photo, it must hold everything that a target may show.
        noise_offset (`float`, *optional*, defaults to 0): Scale of additional noise that is constant within a channel.
        bad_rows (`str`, *optional*, defaults to `"raise"`):
            For a sample with an unreadable picture, a gap in its window or a map of another size than its picture:
            `"raise"` an error, or `"skip"` to the next row in the order of the epoch.
    Raises:
        ValueError: If a value is out of range.
    """

    pose_radius: int = 2
    reference_frames: str = "any"
    max_reference_distance: int | None = None
    fit: str = "whole"
    min_crop_scale: float = 1.0
    noise_offset: float = 0.0
    bad_rows: str = "raise"

    def check_cacheable(self) -> None:
        """Raise a `ValueError` if samples show random crops, which a latent cache cannot hold."""
        if self.min_crop_scale < 1:
            raise ValueError(
                "`min_crop_scale` must be 1 with `latent_cache_dir`, since each crop has its own latents, got"
                f" {self.min_crop_scale}."
            )

    def __post_init__(self):
        choices = {"reference_frames": ("any", "first"), "fit": ("whole", "crop"), "bad_rows": ("raise", "skip")}
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
                "`max_reference_distance` must be at least 0, and requires `reference_frames` any, got"
                f" {distance} with {self.reference_frames}."
            )
