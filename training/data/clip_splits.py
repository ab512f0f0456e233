# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Sharing clips out among train, validation and test."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from training.data.clip_tasks import ClipTask
from training.data.ubc_fashion import SPLITS
from training.engine.messages import shorten
from training.media.pictures import why_unreadable


def share_out(
    tasks: list[ClipTask],
    split_file: str | os.PathLike | None = None,
    validation_clips: int = 0,
    test_clips: int = 0,
    split_seed: int = 0,
    holdout_frames: float | None = None,
    splits: Sequence[str] = SPLITS,
) -> tuple[list[ClipTask], list[str]]:
    """Return the clips of `splits`, with their splits, and sentences about clips that are left out.

    At most one way makes splits: a file, a draw of whole clips, or the share of each clip's end that becomes `test`.
    Without any, clips keep the split that they have.

    Raises:
        ValueError: If the file or the numbers do not fit the clips, or no clip is left.
    """
    notes = []
    if split_file:
        tasks, notes = split_by_file(tasks, read_split_file(split_file))
    elif validation_clips or test_clips:
        tasks = draw_splits(tasks, validation_clips, test_clips, split_seed)
    elif holdout_frames:
        tasks = [replace(task, split="train", holdout=holdout_frames) for task in tasks]
    chosen = [task for task in tasks if task.split in splits]
    if not chosen:
        raise ValueError(f"`splits` must have at least one clip, got none of {len(tasks)} in {', '.join(splits)}.")
    return chosen, notes


def read_split_file(path: str | os.PathLike) -> dict[str, str]:
    """Read a CSV file with a clip and its split in each line; a first line `clip,split` is allowed.

    Raises:
        ValueError: If a line, which the message names, is anything else or names a clip twice, or there is none.
    """
    splits: dict[str, str] = {}
    try:
        lines = list(csv.reader(Path(path).read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"`split_file` must be a CSV file, got {str(path)!r}: {why_unreadable(error)}.") from error
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in line]
        if words in ([], ["clip", "split"]):
            continue
        if len(words) != 2 or words[1] not in SPLITS or words[0] in splits:
            got = f"line {number} of {str(path)!r}: {shorten(line)}"
            rule = f"`split_file` must have lines CLIP,SPLIT, once per clip, where SPLIT is one of {', '.join(SPLITS)}"
            raise ValueError(f"{rule}, got {got}.")
        splits[words[0]] = words[1]
    if not splits:
        raise ValueError(f"`split_file` must name at least one clip, got {str(path)!r}, which names none.")
    return splits


def split_by_file(tasks: Iterable[ClipTask], splits: dict[str, str]) -> tuple[list[ClipTask], list[str]]:
    """Return the clips that a split file names, with their splits, and a sentence about the others.

    Raises:
        ValueError: If the file names clips that are not there.
    """
    tasks = list(tasks)
    missing = sorted(set(splits) - {task.video_id for task in tasks})
    if missing:
        raise ValueError(f"`split_file` must name clips that are there, got {shorten(missing)}.")
    named = [replace(task, split=splits[task.video_id]) for task in tasks if task.video_id in splits]
    others = [task.video_id for task in tasks if task.video_id not in splits]
    return named, [f"clips that --split_file does not name are left out: {shorten(others)}"] if others else []


def draw_splits(tasks: Iterable[ClipTask], num_validation: int, num_test: int, seed: int) -> list[ClipTask]:
    """Draw whole clips for validation and test. The draw depends on the seed and the clips' ids alone.

    Raises:
        ValueError: If no clip is left for training.
    """
    tasks = list(tasks)
    if num_validation + num_test >= len(tasks):
        raise ValueError(
            f"`validation_clips` and `test_clips` must leave a clip for training, got {num_validation} and {num_test} "
            f"of {len(tasks)}. Of a single clip, --holdout_frames 0.2 holds out the end."
        )
    drawn = sorted(tasks, key=lambda task: hashlib.sha256(f"{seed}:{task.video_id}".encode()).digest())
    split_of = {task.video_id: "validation" for task in drawn[:num_validation]}
    split_of |= {task.video_id: "test" for task in drawn[num_validation : num_validation + num_test]}
    return [replace(task, split=split_of.get(task.video_id, "train")) for task in tasks]
