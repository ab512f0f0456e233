# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Preparing a data set from many clips, with one parquet shard per clip; a killed run can be resumed.

FOLDER/settings.json                   settings of all shards
FOLDER/frames/SPLIT/VIDEO_ID.parquet   a clip's rows; the file appears when it is complete
FOLDER/records/SPLIT/VIDEO_ID.json     outcome of the clip, written last: it marks the clip as finished
FOLDER/annotations/...                 the same rows without pictures, for publishing
"""

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
from training.data.ubc_fashion import SPLITS, read_video_ids
from training.data.video_download import file_digest
from training.media.pictures import UnreadablePictures, is_visible_file
from training.media.settings_file import has_settings, partial_path, read_json, remove_leftovers, write_json
from training.poses.clip_poses import ClipDropped
from training.poses.clip_settings import PoseSettings
from training.poses.estimator import DensePoseEstimator


@dataclass(frozen=True)
class ClipTask:
    """A clip to prepare: its video, and the id and split of its rows."""

    video: Path
    video_id: str
    split: str

    def shard(self, output_dir: Path) -> Path:
        """File of the clip's rows."""
        return output_dir / "frames" / self.split / f"{self.video_id}.parquet"

    def record(self, output_dir: Path) -> Path:
        """File of the clip's outcome."""
        return output_dir / "records" / self.split / f"{self.video_id}.json"


def open_data_set(output_dir: Path, settings: dict) -> None:
    """Start a data set, or resume one with the same settings (everything that its rows depend on besides the videos).

    Raises:
        ValueError: If some clips were prepared with other settings.
    """
    path = output_dir / "settings.json"
    has_clips = any((output_dir / "records").rglob("*.json"))
    if not (has_clips and has_settings(path, settings, "output_dir")):
        write_json(path, settings)
    remove_leftovers(output_dir)


def prepare_clip(
    task: ClipTask, output_dir: Path, estimator: DensePoseEstimator, settings: PoseSettings, show_progress: bool = True
) -> dict:
    """Write a clip's shard and record.

    Returns:
        `dict`: The record: the video's `sha256`, and either `num_frames` and the `filled` frames, or the reason why
            the clip was `dropped`.
    """
    shard = task.shard(output_dir)
    try:
        rows, filled = clip_rows(task.video, task.video_id, task.split, estimator, settings, show_progress)
    except (ClipDropped, UnreadablePictures) as error:
        record = {"dropped": str(error)}
    else:
        shard.parent.mkdir(parents=True, exist_ok=True)
        # A unique name, since a process of a killed run may still be finishing this clip.
        partial = partial_path(output_dir / task.video_id)
        columns = {name: [row[name] for row in rows] for name in FEATURES}
        datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(str(partial))
        os.replace(partial, shard)
        record = {"num_frames": len(rows), "filled": filled}
    record["sha256"] = file_digest(task.video)
    write_json(task.record(output_dir), record)
    return record


def unfinished(tasks: Iterable[ClipTask], output_dir: Path) -> list[ClipTask]:
    """Return the clips without a record, and those that were dropped but whose video has changed since."""

    def is_done(task: ClipTask) -> bool:
        path = task.record(output_dir)
        record = read_json(path, "output_dir", "sha256") if path.exists() else None
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
    """Prepare clips in `num_proc` processes (1 means this process), each of which loads DensePose.

    Returns:
        `Iterator[tuple[ClipTask, dict]]`: Each clip and its record, in the order in which they are finished.
    Raises:
        ValueError: If DensePose cannot be used, or a process died, for example because memory ran out.
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
                f"`num_proc` must leave memory for all processes, but one of {num_proc} died; run the same command "
                "again to prepare the missing clips."
            ) from error
        finally:  # after an interruption, the workers finish only their current clips
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(densepose: str | os.PathLike, device: str, num_proc: int) -> None:
    global _estimator  # loaded once per worker
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_proc))
    _estimator = DensePoseEstimator(densepose, device)


def _end_with_parent() -> None:
    """End this worker when its parent ends; after a killed parent it would otherwise wait for ever."""
    parent_process().join()
    os._exit(1)


def _prepare_in_worker(task: ClipTask, output_dir: Path, settings: PoseSettings) -> dict:
    return prepare_clip(task, output_dir, _estimator, settings, show_progress=False)


def summarize(tasks: Iterable[ClipTask], output_dir: Path) -> dict:
    """Write `summary.json` and return its content: the `settings`, and the clips' records by split and id."""
    settings = read_json(output_dir / "settings.json", "output_dir")
    summary = {"settings": settings, "clips": {}}
    for task in sorted(tasks, key=lambda task: (task.split, task.video_id)):
        record = read_json(task.record(output_dir), "output_dir", "sha256")
        if "dropped" not in record:
            read_json(task.record(output_dir), "output_dir", "num_frames", "filled")
        summary["clips"].setdefault(task.split, {})[task.video_id] = record
    write_json(output_dir / "summary.json", summary)
    return summary


def describe(summary: dict) -> list[str]:
    """Return lines about a summary from `summarize`: clips and frames of each split, filled frames, dropped clips."""
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
    """Write the shards of prepared clips without pictures, and return their folder; files that are up to date stay."""
    folder = output_dir / "annotations"
    features = datasets.Features({name: feature for name, feature in FEATURES.items() if name != "image"})
    for task in tasks:
        shard = task.shard(output_dir)
        path = folder / "frames" / task.split / shard.name
        if not shard.exists() or (path.exists() and path.stat().st_mtime_ns > shard.stat().st_mtime_ns):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as cache_dir:
            rows = datasets.Dataset.from_parquet(
                str(shard), features=features, columns=list(features), cache_dir=cache_dir, keep_in_memory=True
            )
        partial = folder / f".{shard.name}.partial"
        rows.to_parquet(str(partial))
        os.replace(partial, path)
    return folder


def find_clips(folder: Path, splits: Sequence[str], include_images: bool = False) -> list[ClipTask]:
    """Return the clips of `splits` among a folder's `*.mp4`: UBC Fashion keeps its splits, all others are `train`.

    Raises:
        ValueError: If there is no clip, or `include_images` would publish pictures of UBC Fashion.
    """
    split_of = {name: split for split in SPLITS for name in read_video_ids(split)}
    videos = sorted(filter(is_visible_file, folder.glob("*.mp4")))
    tasks = [ClipTask(video, video.stem, split_of.get(video.stem, "train")) for video in videos]
    tasks = [task for task in tasks if task.split in splits]
    if not tasks:
        raise ValueError(
            f"`video_dir` must hold *.mp4 of the splits {', '.join(splits)}, got {str(folder)!r}, without any."
        )
    sellers = [task.video_id for task in tasks if task.video_id in split_of]
    if include_images and sellers:
        raise ValueError(f"`include_images` must be for videos of your own, got {sellers[0]!r} of UBC Fashion.")
    return tasks
