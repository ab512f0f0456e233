# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Make a training data set of your own frames or videos, or of UBC Fashion: one row per frame, with its IUV.

python training/prepare_dataset.py --frames_dir frames --iuv_dir iuv --holdout_frames 0.2 --output_dir mine
python training/prepare_dataset.py --video_dir videos --densepose model.pt --test_clips 2 --output_dir mine
python training/prepare_dataset.py --ubc_fashion --densepose model.pt --output_dir ubc
accelerate launch --multi_gpu --num_processes 4 training/prepare_dataset.py ...    # spreads the clips over 4 GPUs
"""

import argparse
from datetime import timedelta
from typing import TYPE_CHECKING

from training.engine.messages import count
from training.engine.output_lock import locks_output
from training.options.command import CommandParser, run_command
from training.options.data_set import add_data_set_options, check_data_set_options


if TYPE_CHECKING:
    from training.data.clip_tasks import ClipTask


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    usage = "%(prog)s --output_dir FOLDER (--frames_dir FOLDER | --video_dir FOLDER | --ubc_fashion) [...]"
    parser = CommandParser(usage=usage, description=__doc__)
    add_data_set_options(parser)
    options = parser.parse_args(argv)
    check_data_set_options(parser, options)
    return options


def main(options: argparse.Namespace) -> None:
    """Prepare the clips, or print what there is to prepare."""
    if not options.dry_run:
        prepare(options)
        return
    from training.data.clip_table import clip_table

    tasks, notes = find_tasks(options)
    print(*clip_table(tasks, options.settings), *notes, sep="\n")


@locks_output("output_dir", is_folder=True)
def prepare(options: argparse.Namespace) -> None:
    """Download the videos if needed, prepare all clips, and report."""
    import datasets
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from training.data import parquet_files, preparation
    from training.data.ubc_fashion import read_video_ids
    from training.data.video_download import download_videos
    from training.hub.publishing import push_data_set
    from training.media.outputs import check_output
    from training.media.pictures import spare_inputs
    from training.poses.estimator import DensePoseEstimator, find_densepose

    check_output("output_dir", options.output_dir)
    spare_inputs("output_dir", [options.output_dir], [options.frames_dir, options.video_dir, options.iuv_dir])
    datasets.disable_progress_bars()  # there would be one per shard
    # The other processes wait while the main one downloads.
    state = PartialState(cpu=options.device == "cpu", timeout=timedelta(hours=24))
    device, folder = options.device or str(state.device), options.output_dir
    with state.main_process_first():
        densepose = options.densepose and find_densepose(options.densepose)
        if densepose:
            DensePoseEstimator(densepose, device)  # a broken model shows before any work begins
        if state.is_main_process:
            settings = preparation.data_set_settings(options.settings, densepose, options.holdout_frames)
            preparation.open_data_set(folder, settings)
            if options.ubc_fashion:
                ids = [name for split in options.splits for name in read_video_ids(split)]
                download_videos(ids, folder / "videos", max_video_mb=options.max_video_mb)
    tasks, notes = find_tasks(options)
    todo = preparation.unfinished(tasks, folder)
    state.wait_for_everyone()  # all processes must share out the same list
    share = todo[state.process_index :: state.num_processes]
    records = preparation.prepare_clips(share, folder, densepose, options.settings, device, options.num_proc)
    is_silent = not (share and state.is_main_process)
    for task, record in tqdm(records, total=len(share), desc="clips", unit="clip", disable=is_silent):
        if "dropped" in record:
            tqdm.write(f"{task.video_id} dropped: {record['dropped']}")
    state.wait_for_everyone()
    if state.is_main_process:
        summary = preparation.summarize(tasks, folder)
        notes += preparation.find_others(tasks, folder, options.splits)
        numbers = count(len(tasks), "clip"), count(state.num_processes * options.num_proc, "process")
        print(*notes, "{}, prepared by {}:".format(*numbers), *preparation.describe(summary), sep="\n")
        if options.push_to_hub:
            pushed = folder if options.include_images else preparation.write_annotations(tasks, folder)
            print(push_data_set(pushed, options.push_to_hub, tasks, summary, options.include_images))
        preparation.check_used(summary)
        print(f'load_dataset("parquet", data_dir="{parquet_files.escape(str(folder / "frames"))}")')


def find_tasks(options: argparse.Namespace) -> "tuple[list[ClipTask], list[str]]":
    """Return the clips to prepare, and sentences about everything that is passed over or does not match."""
    from training.data import clip_splits, clip_tasks

    if options.ubc_fashion:
        tasks, notes = clip_tasks.find_ubc_fashion(options.output_dir / "videos"), []
    elif options.frames_dir:
        tasks, notes = clip_tasks.find_frame_folders(options.frames_dir)
    else:
        tasks, notes = clip_tasks.find_videos(options.video_dir)
    if options.iuv_dir:
        tasks, more = clip_tasks.find_poses(tasks, options.iuv_dir)
        notes += more
    names = "split_file validation_clips test_clips split_seed holdout_frames splits".split()
    tasks, more = clip_splits.share_out(tasks, **{name: getattr(options, name) for name in names})
    if options.include_images:
        clip_tasks.check_own(tasks)
    return tasks, notes + more


if __name__ == "__main__":
    run_command(parse_args, main, "The finished clips are kept. The same command prepares the others.")
