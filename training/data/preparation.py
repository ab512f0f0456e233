# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A data set from many clips, one parquet shard a clip, so that a run can be killed at any moment and goes on.

FOLDER/settings.json                   what all shards were made with
FOLDER/frames/SPLIT/VIDEO_ID.parquet   a clip's rows, whole or not there
FOLDER/records/SPLIT/VIDEO_ID.json     what became of the clip; written last: the clip is done
FOLDER/annotations/...                 the same rows without pictures, if they are to be published
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import datasets
import torch

from training.data.clip_rows import FEATURES, clip_rows
from training.data.video_download import file_digest
from training.media.pictures import UnreadablePictures
from training.media.settings_file import has_settings, partial_path, remove_leftovers, write_json
from training.poses.clip_poses import ClipDropped, PoseSettings
from training.poses.estimator import DensePoseEstimator


@dataclass(frozen=True)
class ClipTask:
    """A clip to be prepared: a video, and where its rows belong."""

    video: Path
    video_id: str
    split: str

    def shard(self, output_dir: Path) -> Path:
        """Its rows."""
        return output_dir / "frames" / self.split / f"{self.video_id}.parquet"

    def record(self, output_dir: Path) -> Path:
        """What became of it."""
        return output_dir / "records" / self.split / f"{self.video_id}.json"


def open_data_set(output_dir: Path, settings: dict) -> None:
    """Begin a data set, or go on with one that was made with the same settings.

    Args:
        output_dir (`Path`): Its folder.
        settings (`dict`): All that its rows depend on besides the videos, as JSON.
    Raises:
        ValueError: If clips of it were made with others.
    """
    path = output_dir / "settings.json"
    has_clips = any((output_dir / "records").rglob("*.json"))
    if not (has_clips and has_settings(path, settings, "output_dir")):
        write_json(path, settings)
    remove_leftovers(output_dir)


def prepare_clip(
    task: ClipTask,
    output_dir: Path,
    estimator: DensePoseEstimator,
    settings: PoseSettings,
    show_progress: bool = True,
) -> dict:
    """Write a clip's shard and record.

    Args:
        task (`ClipTask`): The clip.
        output_dir (`Path`): Folder of the data set.
        estimator (`DensePoseEstimator`): DensePose.
        settings (`PoseSettings`): Whom to follow, and what becomes of gaps and flicker.
        show_progress (`bool`, *optional*, defaults to `True`): A bar over the frames.
    Returns:
        `dict`: The record: the video's `sha256`, and `num_frames` and the frames that were `filled`, or why the clip
            was `dropped`.
    """
    shard = task.shard(output_dir)
    try:
        rows, filled = clip_rows(task.video, task.video_id, task.split, estimator, settings, show_progress)
    except (ClipDropped, UnreadablePictures) as error:
        record = {"dropped": str(error)}
    else:
        shard.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: where a run was killed, a process of it may still be finishing this very clip.
        partial = partial_path(output_dir / task.video_id)
        columns = {name: [row[name] for row in rows] for name in FEATURES}
        datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(str(partial))
        os.replace(partial, shard)
        record = {"num_frames": len(rows), "filled": filled}
    record["sha256"] = file_digest(task.video)
    write_json(task.record(output_dir), record)
    return record


def unfinished(tasks: Iterable[ClipTask], output_dir: Path) -> list[ClipTask]:
    """Those of the clips that have no record yet, or were dropped when their video was another."""

    def is_done(task: ClipTask) -> bool:
        path = task.record(output_dir)
        record = json.loads(path.read_text()) if path.exists() else None
        return record is not None and ("dropped" not in record or record["sha256"] == file_digest(task.video))

    return [task for task in tasks if not is_done(task)]


def prepare_clips(
    tasks: Sequence[ClipTask],
    output_dir: Path,
    densepose: str | os.PathLike,
    settings: PoseSettings,
    device: str = "cpu",
    num_proc: int = 1,
) -> Iterator[tuple[ClipTask, dict]]:
    """Prepare clips, several at a time.

    Args:
        tasks (`Sequence[ClipTask]`): The clips.
        output_dir (`Path`): Folder of the data set.
        densepose (`str` or `os.PathLike`): As `DensePoseEstimator` takes it; each process loads its own.
        settings (`PoseSettings`): As in `prepare_clip`.
        device (`str`, *optional*, defaults to `"cpu"`): Where DensePose runs.
        num_proc (`int`, *optional*, defaults to 1): Processes; with 1 it is this one.
    Returns:
        `Iterator[tuple[ClipTask, dict]]`: Each clip and its record, as they are finished.
    Raises:
        ValueError: If DensePose cannot be used, or a process died, as for want of memory.
    """
    if not tasks:
        return
    if num_proc == 1:
        estimator = DensePoseEstimator(densepose, device)
        for task in tasks:
            yield task, prepare_clip(task, output_dir, estimator, settings)
        return
    start = (densepose, device, num_proc)
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker, start) as pool:
        futures = {pool.submit(_prepare_in_worker, task, output_dir, settings): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"`num_proc` must leave memory for all its processes, but one of {num_proc} died; the same command "
                "goes on with the clips that are missing."
            ) from error
        finally:  # interrupted, only the clips that are under way are finished
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(densepose: str | os.PathLike, device: str, num_proc: int) -> None:
    global _estimator  # a worker's own, loaded once
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_proc))
    _estimator = DensePoseEstimator(densepose, device)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, which would wait for it for ever."""
    parent_process().join()
    os._exit(1)


def _prepare_in_worker(task: ClipTask, output_dir: Path, settings: PoseSettings) -> dict:
    return prepare_clip(task, output_dir, _estimator, settings, show_progress=False)


def summarize(tasks: Iterable[ClipTask], output_dir: Path) -> dict:
    """Collect what became of the clips into `summary.json`.

    Args:
        tasks (`Iterable[ClipTask]`): The clips, all of them prepared.
        output_dir (`Path`): Folder of the data set.
    Returns:
        `dict`: The `settings`, and by split and clip its record.
    """
    settings = json.loads((output_dir / "settings.json").read_text())
    summary = {"settings": settings, "clips": {}}
    for task in sorted(tasks, key=lambda task: (task.split, task.video_id)):
        record = json.loads(task.record(output_dir).read_text())
        summary["clips"].setdefault(task.split, {})[task.video_id] = record
    write_json(output_dir / "summary.json", summary)
    return summary


def describe(summary: dict) -> list[str]:
    """Lines that tell what `summarize` collected: clips and frames of each split, frames filled, clips dropped."""
    lines = []
    for split, clips in summary["clips"].items():
        used = {video_id: record for video_id, record in clips.items() if "dropped" not in record}
        num_frames = sum(record["num_frames"] for record in used.values())
        num_filled = sum(len(record["filled"]) for record in used.values())
        lines.append(f"{split}: {len(used)} clips, {num_frames} frames, {num_filled} of them filled")
        dropped = {video_id: record["dropped"] for video_id, record in clips.items() if "dropped" in record}
        lines += [f"  dropped {video_id}: {reason}" for video_id, reason in dropped.items()]
    return lines


def write_annotations(tasks: Iterable[ClipTask], output_dir: Path) -> Path:
    """Write the shards again without their pictures; what is newer than its shard is kept.

    Args:
        tasks (`Iterable[ClipTask]`): The clips, all of them prepared.
        output_dir (`Path`): Folder of the data set.
    Returns:
        `Path`: The folder of the annotations: `video_id`, `frame_index`, `iuv` and `split`.
    """
    folder = output_dir / "annotations"
    columns = [name for name in FEATURES if name != "image"]
    features = datasets.Features({name: FEATURES[name] for name in columns})
    for task in tasks:
        shard = task.shard(output_dir)
        path = folder / "frames" / task.split / shard.name
        if not shard.exists() or (path.exists() and path.stat().st_mtime_ns > shard.stat().st_mtime_ns):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as cache_dir:
            rows = datasets.Dataset.from_parquet(
                str(shard), features=features, columns=columns, cache_dir=cache_dir, keep_in_memory=True
            )
        partial = folder / f".{shard.name}.partial"
        rows.to_parquet(str(partial))
        os.replace(partial, path)
    return folder
