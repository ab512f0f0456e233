# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Clips to prepare: finding their frames and poses on disk."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av

from training.data.ubc_fashion import SPLITS, read_video_ids
from training.data.video_download import file_digest
from training.data.video_download import find_videos as find_downloaded
from training.engine.messages import shorten
from training.media.pictures import (
    PICTURE_SUFFIXES,
    UnreadablePictures,
    is_visible_file,
    list_files,
    open_video,
    video_stream,
)
from training.poses.clip_poses import ClipDropped
from training.poses.matching import POSE_SUFFIXES
from training.poses.pose_files import VIDEO_SUFFIXES


_MAX_NAME = 200  # of the 255 bytes that file systems allow; a temporary file has a longer name
# Pictures, and what `download_videos` leaves of a video that is not complete or was refused.
_NO_VIDEO_SUFFIXES = (*(suffix for suffix in PICTURE_SUFFIXES if suffix != ".gif"), ".part", ".rejected")


@dataclass(frozen=True)
class ClipTask:
    """A clip to prepare.

    Args:
        source (`Path`): A video, or a folder with one picture per frame.
        video_id (`str`): Id of its rows.
        split (`str`): Split of its rows.
        poses (`Path`, *optional*): Its DensePose output; `None` if DensePose is to run.
        holdout (`float`, *optional*, defaults to 0.0): Share of its frames, at its end, that become `test` instead.
    """

    source: Path
    video_id: str
    split: str
    poses: Path | None = None
    holdout: float = 0.0

    def num_held_out(self, num_frames: int) -> int:
        """Return how many of the clip's last frames become `test`. Raise [`ClipDropped`] if none would be left."""
        count = max(1, round(self.holdout * num_frames)) if self.holdout else 0
        if count and count >= num_frames:
            raise ClipDropped(f"too few frames to hold out some of them: {num_frames}.")
        return count

    @property
    def splits(self) -> list[str]:
        """Splits that get rows of the clip, in the order of its frames."""
        return [self.split, "test"] if self.holdout else [self.split]

    def shards(self, output_dir: Path) -> dict[str, Path]:
        """Files of the clip's rows by split."""
        return {split: output_dir / "frames" / split / f"{self.video_id}.parquet" for split in self.splits}

    def record(self, output_dir: Path) -> Path:
        """File of the clip's outcome."""
        return output_dir / "records" / self.split / f"{self.video_id}.json"

    def digest(self) -> str:
        """Return a SHA-256 of the clip's frames and of its poses, if they are on disk and can be read."""
        if self.poses is None and self.source.is_file():
            return _digest_if_readable(self.source)
        paths = [path for path in (self.source, self.poses) if path is not None]
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        digests = [(file.name, _digest_if_readable(file)) for file in files if is_visible_file(file)]
        return hashlib.sha256(repr(digests).encode()).hexdigest()


def _digest_if_readable(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError:  # such as a dead link
        return ""


def find_videos(folder: Path) -> tuple[list[ClipTask], list[str]]:
    """Return a folder's videos in any container that PyAV reads, and sentences about skipped files.

    Their split is that of UBC Fashion's lists, and `train` for all others. A broken file with the suffix of a video
    stays in the list, so that the report names it.
    """
    split_of = {name: split for split in SPLITS for name in read_video_ids(split)}
    tasks, others = [], []
    for file in sorted(filter(is_visible_file, folder.iterdir())):
        suffix = file.suffix.lower()
        if suffix in VIDEO_SUFFIXES or (suffix not in _NO_VIDEO_SUFFIXES and _is_video(file)):
            tasks.append(ClipTask(file, file.stem, split_of.get(file.stem, "train")))
        else:
            others.append(file.name)
    _check_clips(tasks, "video_dir", folder)
    return tasks, _name_passed_over("video_dir", "no videos", others)


def find_ubc_fashion(folder: Path) -> list[ClipTask]:
    """Return the videos that [`download_videos`] got. Raise a `ValueError` if there are none."""
    split_of = {name: split for split in SPLITS for name in read_video_ids(split)}
    videos = find_downloaded(split_of, folder).videos if folder.is_dir() else {}
    if not videos:
        advice = (
            f"A run without --dry_run downloads them; {folder / 'missing.json'} then lists those that did not arrive"
        )
        raise ValueError(f"`ubc_fashion` must have videos in {str(folder)!r}, got none. {advice}.")
    return [ClipTask(path, name, split_of[name]) for name, path in videos.items()]


def _is_video(file: Path) -> bool:
    try:
        with open_video(file) as container:
            return video_stream(container) is not None
    except (av.error.FFmpegError, OSError, ValueError, UnreadablePictures):
        return False


def find_frame_folders(folder: Path) -> tuple[list[ClipTask], list[str]]:
    """Return the clips of a folder with one folder of pictures per clip, and sentences about skipped files.

    Raises:
        ValueError: If the folder holds pictures instead of folders.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    clips = [path for path in entries if path.is_dir() and list_files(path, PICTURE_SUFFIXES)]
    if not clips and list_files(folder, PICTURE_SUFFIXES):
        raise ValueError(
            f"`frames_dir` must hold one folder of pictures per clip, got {str(folder)!r}, which holds pictures "
            "itself. Put them into a folder in it."
        )
    others = [path.name for path in entries if path not in clips]
    tasks = [ClipTask(path, path.name, "train") for path in clips]
    _check_clips(tasks, "frames_dir", folder)
    return tasks, _name_passed_over("frames_dir", "no folders of pictures", others)


def _name_passed_over(argument: str, kind: str, names: Sequence[str]) -> list[str]:
    return [f"passed over in --{argument}, since they are {kind}: {shorten(list(names))}"] if names else []


def _check_clips(tasks: Sequence[ClipTask], argument: str, folder: Path) -> None:
    """Raise a `ValueError` if there is no clip, two clips have one id, or an id is too long for the names of files."""
    if not tasks:
        clip = f"a folder of pictures ({', '.join(PICTURE_SUFFIXES)})" if argument == "frames_dir" else "a video"
        raise ValueError(f"`{argument}` must hold at least one clip, {clip}, got {str(folder)!r}, without any.")
    seen = {}
    for task in tasks:
        if len(os.fsencode(task.video_id)) > _MAX_NAME:
            got = shorten(task.video_id)
            raise ValueError(f"`{argument}` must hold clips with names of at most {_MAX_NAME} bytes, got {got}.")
        other = seen.setdefault(task.video_id, task)
        if other is not task:
            names = f"{other.source.name!r} and {task.source.name!r}"
            raise ValueError(f"`{argument}` must hold clips of different names, got {names}.")


def check_own(tasks: Iterable[ClipTask]) -> None:
    """Raise a `ValueError` if one of the clips is of UBC Fashion, whose pictures must not be published."""
    published = {name for split in SPLITS for name in read_video_ids(split)}
    sellers = [task.video_id for task in tasks if task.video_id in published]
    if sellers:
        raise ValueError(f"`include_images` must be for pictures of your own, got {sellers[0]!r} of UBC Fashion.")


def find_poses(tasks: Sequence[ClipTask], folder: Path) -> tuple[list[ClipTask], list[str]]:
    """Return the clips that have poses in a folder, with them, and sentences about what does not match.

    The poses of a clip are a folder of its name, or a file of its name with one of `POSE_SUFFIXES`.

    Raises:
        ValueError: If a clip has poses twice, or no clip has any.
    """
    found: dict[str, Path] = {}
    others = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        name = path.name if path.is_dir() else path.stem
        if not path.is_dir() and path.suffix.lower() not in POSE_SUFFIXES:
            others.append(path.name)
        elif name in found:
            raise ValueError(f"`iuv_dir` must hold one entry per clip, got {found[name].name!r} and {path.name!r}.")
        else:
            found[name] = path
    with_poses = [replace(task, poses=found[task.video_id]) for task in tasks if task.video_id in found]
    without = [task.video_id for task in tasks if task.video_id not in found]
    unused = sorted(set(found) - {task.video_id for task in tasks})
    if not with_poses:
        rule = f"`iuv_dir` must hold poses that are named like the clips, as folders or as {', '.join(POSE_SUFFIXES)}"
        raise ValueError(f"{rule}, got {shorten(unused + others)} for {shorten(without)}.")
    notes = _name_passed_over("iuv_dir", "no poses", others)
    notes += [f"clips without poses in --iuv_dir are left out: {shorten(without)}"] if without else []
    notes += [f"poses in --iuv_dir without a clip: {shorten(unused)}"] if unused else []
    return with_poses, notes
