# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Numbers of clips and frames to measure. A default becomes smaller for a small data set; a given number does not."""

from collections.abc import Sequence


COUNTS = ("num_clips", "frames_per_clip", "num_consecutive")
FEWEST_CONSECUTIVE = 3  # flicker needs three frames


class UpTo(int):
    """A default number, in place of which fewer may be measured."""


def reduce_counts(num_frames: Sequence[int], counts: Sequence[int]) -> tuple[list[int], str | None]:
    """Reduce each count that is an [`UpTo`] to what there is.

    Args:
        num_frames (`Sequence[int]`): Number of frames of each clip of the split.
        counts (`Sequence[int]`): Counts in the order of `COUNTS`.
    Returns:
        `tuple[list[int], str | None]`: The counts, and a sentence about those that are smaller, if there are any.
    """
    num_clips, frames_per_clip, num_consecutive = counts
    if isinstance(num_clips, UpTo):
        num_clips = min(num_clips, len(num_frames))
    longest = min(num_frames[: max(num_clips, 1)], default=0) - 1  # the first frame is the photo
    if isinstance(frames_per_clip, UpTo):
        frames_per_clip = max(min(frames_per_clip, longest), 1)
    if isinstance(num_consecutive, UpTo) and num_consecutive > longest:
        num_consecutive = longest if longest >= FEWEST_CONSECUTIVE else 0
    reduced = [num_clips, frames_per_clip, num_consecutive]
    fewer = [f"`{name}` {new}, not {old}" for name, old, new in zip(COUNTS, counts, reduced) if new < old]
    return reduced, f"The split has fewer than the defaults: {'; '.join(fewer)}." if fewer else None
