# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Preparing a data set from many clips, with one parquet shard per clip; a killed run can be resumed.

FOLDER/settings.json                   settings of all shards
FOLDER/frames/SPLIT/VIDEO_ID.parquet   a clip's rows; the file appears when it is complete
FOLDER/records/SPLIT/VIDEO_ID.json     outcome of the clip, written last: it marks the clip as finished
FOLDER/annotations/...                 the same rows without pictures, for publishing
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import datasets
import torch

from training.data.clip_rows import FEATURES, clip_rows
from training.data.clip_tasks import ClipTask
from training.data.row_settings import RowSettings
from training.data.ubc_fashion import SPLITS
from training.data.video_download import file_digest
from training.engine.messages import count, shorten
from training.media.pictures import UnreadablePictures
from training.media.settings_file import has_settings, partial_path, read_json, remove_leftovers, write_json
from training.poses.clip_poses import ClipDropped
from training.poses.estimator import DensePoseEstimator, PictureRefused


def data_set_settings(
    settings: RowSettings, densepose: str | os.PathLike | None, holdout_frames: float | None
) -> dict[str, Any]:
    """Return everything that the rows depend on besides the clips, for `settings.json`."""
    facts = {"densepose": file_digest(densepose) if densepose else None, **vars(settings.poses)}
    facts |= {} if densepose else {"channel_order": settings.channel_order}
    facts |= {"square_pixels": list(settings.square_pixels)} if settings.square_pixels else {}
    return facts | ({"holdout_frames": holdout_frames} if holdout_frames else {})


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
    task: ClipTask,
    output_dir: Path,
    estimator: DensePoseEstimator | None,
    settings: RowSettings,
    show_progress: bool = True,
) -> dict:
    """Write a clip's shards and record.

    Returns:
        `dict`: The record: the `sha256` of the clip, and either `num_frames`, the numbers of the `filled` frames and
            perhaps `notices`, or the reason why the clip was `dropped`. `held_out` is the number of its last frames
            that became `test`, if there are any.
    """
    try:
        poses = estimator if task.poses is None else task.poses
        made = clip_rows(task.source, task.video_id, task.split, poses, settings, show_progress)
        parts = _hold_out(made.rows, task)
    except (ClipDropped, UnreadablePictures, PictureRefused) as error:
        record = {"dropped": f"{'DensePose fails: ' * isinstance(error, PictureRefused)}{error}"}
        for shard in task.shards(output_dir).values():  # of an earlier run, before the clip changed
            shard.unlink(missing_ok=True)
    except ValueError as error:  # such as a DensePose that fails on every picture
        raise ValueError(f"{error} The clip is {task.video_id!r}.") from error
    else:
        for split, shard in task.shards(output_dir).items():
            _write_shard(parts[split], shard, output_dir)
        record = {"num_frames": len(made.rows), "filled": made.filled}
        record |= {"held_out": len(parts["test"])} if task.holdout else {}
        record |= {"notices": made.notices} if made.notices else {}
    record["sha256"] = task.digest()
    write_json(task.record(output_dir), record)
    return record


def _hold_out(rows: list[dict], task: ClipTask) -> dict[str, list[dict]]:
    """Return the clip's rows by split."""
    if not task.holdout:
        return {task.split: rows}
    num_kept = len(rows) - task.num_held_out(len(rows))
    return {task.split: rows[:num_kept], "test": [row | {"split": "test"} for row in rows[num_kept:]]}


def _write_shard(rows: list[dict], shard: Path, output_dir: Path) -> None:
    shard.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, since a process of a killed run may still be finishing this clip.
    partial = partial_path(output_dir / shard.stem)
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(str(partial))
    os.replace(partial, shard)


def unfinished(tasks: Iterable[ClipTask], output_dir: Path) -> list[ClipTask]:
    """Return the clips without a record or shard, and those whose frames or poses have changed since.

    Raises:
        ValueError: If a clip was prepared for another split.
    """
    for task in tasks:
        records = {task.record(output_dir).parents[1] / split / task.record(output_dir).name for split in SPLITS}
        for other in filter(Path.exists, records - {task.record(output_dir)}):
            got = f"{task.video_id!r}, which was prepared for {other.parent.name} and is {task.split} now"
            raise ValueError(f"`output_dir` must keep the split of each clip, got {got}. Use another folder.")

    def is_done(task: ClipTask) -> bool:
        path = task.record(output_dir)
        record = read_json(path, "output_dir", "sha256") if path.exists() else None
        if record is None or ("dropped" not in record and not all(map(Path.exists, task.shards(output_dir).values()))):
            return False
        return record["sha256"] == task.digest()

    return [task for task in tasks if not is_done(task)]


def prepare_clips(
    tasks: Sequence[ClipTask],
    output_dir: Path,
    densepose: str | os.PathLike | None,
    settings: RowSettings,
    device: str = "cpu",
    num_proc: int = 1,
) -> Iterator[tuple[ClipTask, dict]]:
    """Prepare clips in `num_proc` processes (1 means this process), each of which loads DensePose if it is given.

    Returns:
        `Iterator[tuple[ClipTask, dict]]`: Each clip and its record, in the order in which they are finished.
    Raises:
        ValueError: If DensePose cannot be used, or a process died, for example because memory ran out.
    """
    if not tasks:
        return
    if num_proc == 1:
        estimator = densepose and DensePoseEstimator(densepose, device)
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


def _start_worker(densepose: str | os.PathLike | None, device: str, num_proc: int) -> None:
    global _estimator  # loaded once per worker
    datasets.disable_progress_bars()  # there would be one per shard
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_proc))
    _estimator = densepose and DensePoseEstimator(densepose, device)


def _end_with_parent() -> None:
    """End this worker when its parent ends; after a killed parent it would otherwise wait for ever."""
    parent_process().join()
    os._exit(1)


def _prepare_in_worker(task: ClipTask, output_dir: Path, settings: RowSettings) -> dict:
    return prepare_clip(task, output_dir, _estimator, settings, show_progress=False)


def find_others(tasks: Iterable[ClipTask], output_dir: Path, splits: Sequence[str] = SPLITS) -> list[str]:
    """Return a sentence about the shards in `splits` of clips that are not among the `tasks`, as an earlier run's."""
    own = {shard for task in tasks for shard in task.shards(output_dir).values()}
    shards = [shard for split in splits for shard in sorted((output_dir / "frames" / split).glob("*.parquet"))]
    others = [str(shard.relative_to(output_dir)) for shard in shards if shard not in own]
    what = "of other clips, which training reads too; delete them if these clips are to stay out"
    return [f"--output_dir also has files {what}: {shorten(others)}"] if others else []


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
    lines, held_out = [], 0
    for split, clips in summary["clips"].items():
        used = {video_id: record for video_id, record in clips.items() if "dropped" not in record}
        num_held_out = sum(record.get("held_out", 0) for record in used.values())
        num_frames = sum(record["num_frames"] for record in used.values()) - num_held_out
        num_filled = sum(len(record["filled"]) for record in used.values())
        lines.append(f"{split}: {count(len(used), 'clip')}, {count(num_frames, 'frame')}, {num_filled} of them filled")
        notes = {video_id: f"dropped {video_id}: {r['dropped']}" for video_id, r in clips.items() if "dropped" in r}
        notes |= {video_id: f"{video_id}: {' '.join(r['notices'])}" for video_id, r in used.items() if "notices" in r}
        lines += [f"  {note}" for note in notes.values()]
        held_out += num_held_out
    if held_out:
        frames = count(held_out, "frame")
        lines.append(f"test: {frames} at the ends of these clips. It shows the subjects of the training set.")
    return lines


def check_used(summary: dict) -> None:
    """Raise a `ValueError` if all clips of a summary were dropped."""
    records = [record for clips in summary["clips"].values() for record in clips.values()]
    if all("dropped" in record for record in records):
        raise ValueError(f"`output_dir` must get at least one clip, got none: all {len(records)} were dropped.")


def write_annotations(tasks: Iterable[ClipTask], output_dir: Path) -> Path:
    """Write the shards of prepared clips without pictures, and return their folder; files that are up to date stay."""
    folder = output_dir / "annotations"
    features = datasets.Features({name: feature for name, feature in FEATURES.items() if name != "image"})
    for shard in (shard for task in tasks for shard in task.shards(output_dir).values()):
        path = folder / shard.relative_to(output_dir)
        if not shard.exists() or (path.exists() and path.stat().st_mtime_ns > shard.stat().st_mtime_ns):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as cache_dir:
            reading = {"columns": list(features), "cache_dir": cache_dir, "keep_in_memory": True}
            rows = datasets.Dataset.from_parquet(glob.escape(str(shard)), features=features, **reading)
        partial = folder / f".{shard.name}.partial"
        rows.to_parquet(str(partial))
        os.replace(partial, path)
    return folder
