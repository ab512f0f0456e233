# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Publishing of prepared data sets on the Hub."""

import glob
from collections.abc import Sequence
from pathlib import Path
from string import Template

from huggingface_hub import HfApi

from training.data.clip_tasks import ClipTask
from training.data.preparation import describe
from training.data.ubc_fashion import SPLITS, read_video_ids
from training.hub.repositories import check_links, explain_push
from training.media.settings_file import write_json


CARD_PATH = Path(__file__).parents[2] / "model_card" / "annotations.md"
UBC_FASHION = (
    "The videos are those of [UBC Fashion](https://vision.cs.ubc.ca/datasets/fashion/), and `video_id` is their name\n"
    "in its lists. No licence is stated for them."
)
OTHERS = "`video_id` is the name of a frame's video."


def push_data_set(folder: Path, repo_id: str, tasks: Sequence[ClipTask], summary: dict, has_images: bool) -> str:
    """Publish the shards of prepared clips, or of their annotations, with a card; return the data set's address.

    The card and `summary.json`, the result of [`training.data.preparation.summarize`], are written into `folder`; only
    they and the clips' shards are sent. The data set is created on the Hub if there is none.

    Raises:
        ValueError: If there is nothing to publish, or a link leaves the folder; nothing is written then.
        PushError: If the Hub refuses it or cannot be reached; `folder` stays complete.
    """
    shards = [shard for task in tasks for shard in task.shards(folder).values() if shard.exists()]
    if not shards:
        raise ValueError(f"`push_to_hub` must have clips to publish, but all {len(tasks)} were dropped.")
    names = ["README.md", "summary.json", *(shard.relative_to(folder).as_posix() for shard in shards)]
    check_links("output_dir", folder, names)
    published_ids = {name for split in SPLITS for name in read_video_ids(split)}
    splits = sorted({shard.parent.name for shard in shards})
    card = Template(CARD_PATH.read_text()).substitute(
        name=repo_id,
        split=splits[0],
        source=UBC_FASHION if {task.video_id for task in tasks} <= published_ids else OTHERS,
        image_row="| `image` | JPEG of the frame |\n" if has_images else "",
        data_files="\n".join(f"  - split: {split}\n    path: frames/{split}/*.parquet" for split in splits),
        lines="\n".join(f"- {line}" for line in describe(summary) if not line.startswith(" ")),
    )
    (folder / "README.md").write_text(card)
    write_json(folder / "summary.json", summary)
    allowed = [glob.escape(name) for name in names]
    with explain_push("push_to_hub", repo_id, f"Everything is in {str(folder)!r}; the same command pushes it later."):
        api = HfApi()
        address = api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type="dataset", allow_patterns=allowed)
    return str(address)
