# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Settings for the poses of a clip: which person to follow, gaps and flicker."""

from dataclasses import dataclass


PERSON_RULES = ("largest", "score", "centre")


@dataclass(frozen=True)
class PoseSettings:
    """How the detections of a clip become the poses of one person.

    Args:
        person (`str`, *optional*, defaults to `"largest"`): The person to follow among several, one of `PERSON_RULES`.
        max_gap (`int`, *optional*, defaults to 5):
            The longest run of frames without that person, or missing from a folder, that is filled from neighbouring
            frames; 0 fills none.
        median (`int`, *optional*, defaults to 0): Radius of the temporal median of U and V in frames; 0 turns it off.
    Raises:
        ValueError: If a value is out of range.
    """

    person: str = PERSON_RULES[0]
    max_gap: int = 5
    median: int = 0

    def __post_init__(self):
        if self.person not in PERSON_RULES:
            raise ValueError(f"`person` must be one of {PERSON_RULES}, got {self.person!r}.")
        for name, limit in (("max_gap", 10**6), ("median", 100)):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")
            if value > limit:
                raise ValueError(f"`{name}` must be at most {limit}, got {value}.")
