# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Make a training data set of UBC Fashion or of your own videos: download, frames, DensePose, parquet files.

python training/prepare_ubc_fashion.py --output_dir ubc --densepose model.pt
accelerate launch --multi_gpu --num_processes 4 training/prepare_ubc_fashion.py ...    # spreads the clips over 4 GPUs
"""

import argparse
from datetime import timedelta
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from training.engine.output_lock import locks_output
from training.options.command import CommandParser, run_command
from training.options.poses import add_pose_options, pose_settings


SPLITS = ("train", "validation", "test")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    usage = "%(prog)s --output_dir FOLDER --densepose MODEL [--video_dir FOLDER] [--OPTION VALUE ...]"
    parser = CommandParser(usage=usage, description=__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--output_dir", required=True, type=Path, help="folder of the data set; the same command resumes")
    videos = "folder of *.mp4 instead of the download; ids of UBC Fashion keep their splits, others become `train`"
    add("--video_dir", type=Path, help=videos)
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="splits to prepare; all three by default")
    add("--num_proc", type=int, default=1, help="number of clips at a time; each loads its own DensePose")
    add_pose_options(parser, needs_densepose=True)
    add = parser.add_argument_group("publishing").add_argument
    add("--push_to_hub", metavar="OWNER/NAME", help="publish ids, frame numbers and IUV, without pictures")
    add("--include_images", action="store_true", help="publish the pictures too; only for videos that are your own")
    options = parser.parse_args(argv)
    if not 1 <= options.num_proc <= 1024:
        rule = "at least 1" if options.num_proc < 1 else "at most 1024"
        parser.error(f"`--num_proc` must be {rule}, got {options.num_proc}.")
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


@locks_output("output_dir", is_folder=True)
def main(options: argparse.Namespace) -> None:
    """Download the videos if needed, prepare all clips, and report."""
    import datasets
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from training.data import preparation
    from training.data.ubc_fashion import read_video_ids
    from training.data.video_download import download_videos, file_digest
    from training.hub.publishing import push_data_set
    from training.media.outputs import check_output
    from training.poses.estimator import DensePoseEstimator, find_densepose

    check_output("output_dir", options.output_dir)
    datasets.disable_progress_bars()  # there would be one per shard
    # The other processes wait while the main one downloads.
    state = PartialState(cpu=options.device == "cpu", timeout=timedelta(hours=24))
    device, folder = options.device or str(state.device), options.output_dir
    videos = options.video_dir or folder / "videos"
    with state.main_process_first():
        densepose = find_densepose(options.densepose)
        DensePoseEstimator(densepose, device)  # a broken model shows before any work begins
        if state.is_main_process:
            preparation.open_data_set(folder, {"densepose": file_digest(densepose), **vars(options.settings)})
            if options.video_dir is None:
                download_videos([name for split in options.splits for name in read_video_ids(split)], videos)
    tasks = preparation.find_clips(videos, options.splits, options.include_images)
    todo = preparation.unfinished(tasks, folder)
    state.wait_for_everyone()  # all processes must share out the same list
    share = todo[state.process_index :: state.num_processes]
    records = preparation.prepare_clips(share, folder, densepose, options.settings, device, options.num_proc)
    for task, record in tqdm(records, total=len(share), desc="clips", unit="clip", disable=not state.is_main_process):
        if "dropped" in record:
            tqdm.write(f"{task.video_id} dropped: {record['dropped']}")
    state.wait_for_everyone()
    if state.is_main_process:
        summary = preparation.summarize(tasks, folder)
        print(f"{len(tasks)} clips, prepared by {state.num_processes} process(es):")
        print(*preparation.describe(summary), f'load_dataset("parquet", data_dir="{folder / "frames"}")', sep="\n")
        if options.push_to_hub:
            pushed = folder if options.include_images else preparation.write_annotations(tasks, folder)
            print(push_data_set(pushed, options.push_to_hub, tasks, summary, options.include_images))


if __name__ == "__main__":
    run_command(parse_args, main, "The finished clips are kept. The same command prepares the others.")
