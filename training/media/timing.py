# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Frame rates of videos and of folders of pose frames, and the choice of frames from a clip."""

import math
import os
from pathlib import Path

import av
import numpy as np

from training.engine.messages import shorten
from training.media.outputs import check_outputs, record_files
from training.media.pictures import PICTURE_SUFFIXES, UnreadablePictures, list_files, open_video, video_stream
from training.media.settings_file import read_json, write_json


RATE_NAME = "fps.json"  # in a folder of pose frames: the frames per second of the video that they come from
FRAME_RATES = (0.01, 1000.0)


def frame_rate(path: str | os.PathLike, argument: str = "poses") -> float | None:
    """Return a video's mean frames per second, or those in a folder's `fps.json`; `None` if nothing states them.

    Raise a `ValueError` that names the `argument` if `fps.json` holds no frame rate.
    """
    path = Path(path)
    if os.path.isdir(path):  # a `Path` would raise an error for a name that is too long
        if not (path / RATE_NAME).exists():
            return None
        fps = read_json(path / RATE_NAME, argument, "fps")["fps"]
        if type(fps) not in (int, float) or not is_frame_rate(fps):
            low, high = FRAME_RATES
            rule = f"`{argument}` must have an `fps` within [{low:g}, {high:g}] in its {RATE_NAME}"
            raise ValueError(f"{rule}, got {shorten(fps)}.")
        return float(fps)
    try:
        with open_video(path) as container:
            fps = float(video_stream(container).average_rate or 0)
    except (UnreadablePictures, av.error.FFmpegError):  # such as a .npy file
        return None
    return fps if is_frame_rate(fps) else None


def estimate_length(path: str | os.PathLike) -> int | None:
    """Return about how many frames a video or a folder of pictures has, without reading them; `None` if unknown."""
    if Path(path).is_dir():
        return len(list_files(Path(path), PICTURE_SUFFIXES))
    try:
        with open_video(path) as container:
            seconds = (container.duration or 0) / av.time_base
            stream = video_stream(container)
            return stream.frames or round(seconds * float(stream.average_rate or 0)) or None
    except (UnreadablePictures, av.error.FFmpegError):
        return None


def frame_times(path: str | os.PathLike) -> np.ndarray:
    """Return when each frame of a video is shown, in seconds from the first one, without decoding them."""
    with open_video(path) as container:
        stream = video_stream(container)
        packets = (packet for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard)
        times = np.array(sorted(packet.pts for packet in packets))
        return (times - times[:1]) * float(stream.time_base)


def steady_frames(times: np.ndarray, fps: float) -> list[int]:
    """Return which of the frames shown at ascending `times` in seconds, from 0 on, stands at each 1 / `fps` seconds.

    Where frames follow each other faster, some are left out; where they stay longer, they are repeated.
    """
    middles = (np.arange(round(times[-1] * fps) + 1) + 0.5) / fps
    return (np.searchsorted(times, middles, side="right") - 1).tolist()


def is_frame_rate(fps: float) -> bool:
    low, high = FRAME_RATES
    return math.isfinite(fps) and low <= fps <= high


def write_frame_rate(folder: Path, fps: float | None, argument: str) -> None:
    """Write `fps.json` into a folder of pose frames. Without a rate, remove that of an earlier run.

    Raise a `ValueError` that names the `argument` if there is such a file that no run recorded.
    """
    check_outputs(argument, [folder / RATE_NAME])
    if fps is None:
        (folder / RATE_NAME).unlink(missing_ok=True)
        return
    record_files([folder / RATE_NAME])
    write_json(folder / RATE_NAME, {"fps": fps})


def choose_frames(num_frames: int, start: int = 0, end: int | None = None, every: int = 1) -> range:
    """Return every `every`-th frame of a clip, from frame `start` (the first is 0) to the one before frame `end`.

    Raise a `ValueError` if the clip has fewer frames than `start` or `end` asks for.
    """
    if start >= num_frames:
        raise ValueError(f"`start` must be less than the number of frames, {num_frames}, got {start}.")
    if end is not None and end > num_frames:
        raise ValueError(f"`end` must be at most the number of frames, {num_frames}, got {end}.")
    return range(start, num_frames if end is None else end, every)
