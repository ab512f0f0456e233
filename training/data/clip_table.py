# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Table of the clips that a data set would be made of."""

from collections.abc import Sequence

from tqdm.auto import tqdm

from training.data.clip_frames import ClipFrames
from training.data.clip_rows import frame_poses
from training.data.clip_tasks import ClipTask
from training.data.row_settings import RowSettings
from training.media.pictures import UnreadablePictures
from training.poses.clip_poses import ClipDropped


def clip_table(tasks: Sequence[ClipTask], settings: RowSettings) -> list[str]:
    """Return lines with the split, the frames, their size and the gaps of each clip. Existing poses are read.

    Without existing poses, only DensePose can tell where the person is missing, so the gaps are those of the pictures'
    numbers.
    """
    rows = [("clip", "split", "frames", "size", "gaps")]
    remarks = []
    for task in tqdm(tasks, desc="clips", unit="clip", leave=False):
        frames = ClipFrames(task.source, settings.square_pixels)
        try:
            width, height = frames.size
            if task.poses is None:
                places = frames.places(settings.poses.max_gap)
                num_gaps = places[-1] + 1 - len(places) if places else 0
            else:
                matched = frame_poses(frames, task.poses, settings)
                num_gaps = len(matched.filled)
                remarks += [f"{task.video_id}: {notice}" for notice in matched.notices]
            num_test = task.num_held_out(len(frames))
        except (ClipDropped, UnreadablePictures, ValueError) as error:
            rows.append((task.video_id, "dropped", "", "", ""))
            remarks.append(f"{task.video_id} would be dropped: {error}")
        else:
            split = f"{task.split}, last {num_test} test" if num_test else task.split
            rows.append((task.video_id, split, str(len(frames)), f"{width}x{height}", str(num_gaps)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] + remarks
