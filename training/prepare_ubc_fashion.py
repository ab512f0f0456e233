# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""UBC Fashion as a data set to train on: download, frames, DensePose, parquet. Stopped, the same command goes on.

python training/prepare_ubc_fashion.py --output_dir ubc --densepose model.pt
accelerate launch --multi_gpu --num_processes 4 training/prepare_ubc_fashion.py ...    # the clips are shared out
"""

import argparse
from datetime import timedelta
from pathlib import Path

import datasets
from accelerate import PartialState
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from training.data.preparation import (
    ClipTask,
    describe,
    open_data_set,
    prepare_clips,
    summarize,
    unfinished,
    write_annotations,
)
from training.data.ubc_fashion import SPLITS, read_video_ids
from training.data.video_download import download_videos, file_digest
from training.hub.publishing import push_data_set
from training.options.poses import add_pose_options, pose_settings
from training.poses.estimator import DensePoseEstimator, find_densepose


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="UBC Fashion: download, frames, DensePose, parquet.")
    add = parser.add_argument
    add("--output_dir", required=True, type=Path, help="folder of the data set; a run that was stopped goes on there")
    videos = "videos on disk in place of the download, *.mp4: ids of UBC Fashion go to its splits, others to train"
    add("--video_dir", type=Path, help=videos)
    add_pose_options(parser, needs_densepose=True)
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: all three")
    add("--num_proc", type=int, default=1, help="clips at a time, each with a DensePose of its own (default: 1)")
    add("--push_to_hub", metavar="OWNER/NAME", help="publish ids, frame numbers and IUV as a data set; no pictures")
    add("--include_images", action="store_true", help="publish the pictures too: only for videos that are your own")
    options = parser.parse_args(argv)
    if options.num_proc < 1:
        parser.error(f"`--num_proc` must be at least 1, got {options.num_proc}.")
    if options.include_images and not (options.push_to_hub and options.video_dir):
        parser.error("`--include_images` must come with `--push_to_hub` and with `--video_dir`, videos of your own.")
    if options.video_dir and not options.video_dir.is_dir():
        parser.error(f"`--video_dir` must be a folder, got {str(options.video_dir)!r}, which is none.")
    try:
        validate_repo_id(options.push_to_hub or "owner/name")
    except HFValidationError as error:
        parser.error(f"`--push_to_hub` must be OWNER/NAME, got {options.push_to_hub!r}: {error}")
    options.settings = pose_settings(parser, options)
    return options


def find_clips(options: argparse.Namespace) -> list[ClipTask]:
    """The clips whose videos are there."""
    folder = options.video_dir or options.output_dir / "videos"
    split_of = {name: split for split in SPLITS for name in read_video_ids(split)}
    videos = sorted(folder.glob("*.mp4"))
    tasks = [ClipTask(video, video.stem, split_of.get(video.stem, "train")) for video in videos]
    tasks = [task for task in tasks if task.split in options.splits]
    if not tasks:
        raise ValueError(
            f"`video_dir` must hold *.mp4 of the splits {', '.join(options.splits)}, got {str(folder)!r}, without any."
        )
    sellers = [task.video_id for task in tasks if task.video_id in split_of]
    if options.include_images and sellers:
        raise ValueError(f"`include_images` must be for videos of your own, got {sellers[0]!r} of UBC Fashion.")
    return tasks


def main(options: argparse.Namespace) -> None:
    datasets.disable_progress_bars()  # one for each shard
    # The other processes wait while one downloads.
    state = PartialState(cpu=options.device == "cpu", timeout=timedelta(hours=24))
    device = options.device or str(state.device)
    with state.main_process_first():
        densepose = find_densepose(options.densepose)
        DensePoseEstimator(densepose, device)  # what is wrong with it shows before anything is begun
        if state.is_main_process:
            open_data_set(options.output_dir, {"densepose": file_digest(densepose), **vars(options.settings)})
            if options.video_dir is None:
                ids = [name for split in options.splits for name in read_video_ids(split)]
                download_videos(ids, options.output_dir / "videos")
    tasks = find_clips(options)
    todo = unfinished(tasks, options.output_dir)
    state.wait_for_everyone()  # until all have looked: the shares are those of one list
    share = todo[state.process_index :: state.num_processes]
    records = prepare_clips(share, options.output_dir, densepose, options.settings, device, options.num_proc)
    for task, record in tqdm(records, total=len(share), desc="clips", unit="clip", disable=not state.is_main_process):
        if "dropped" in record:
            tqdm.write(f"{task.video_id} dropped: {record['dropped']}")
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"{len(tasks)} clips, prepared by {state.num_processes} process(es):")
        finish(options, tasks)


def finish(options: argparse.Namespace, tasks: list[ClipTask]) -> None:
    """Report, and publish what is asked for."""
    summary = summarize(tasks, options.output_dir)
    print(*describe(summary), sep="\n")
    print(f'load_dataset("parquet", data_dir="{options.output_dir / "frames"}")')
    if options.push_to_hub:
        folder = options.output_dir if options.include_images else write_annotations(tasks, options.output_dir)
        print(push_data_set(folder, options.push_to_hub, tasks, summary, options.include_images))


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"prepare_ubc_fashion.py: error: {error}") from None
