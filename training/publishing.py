# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Prepared data sets, to the Hub."""

from pathlib import Path
from string import Template

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from training.data.preparation import describe
from training.settings_file import write_json


CARD_PATH = Path(__file__).parent.parent / "model_card" / "annotations.md"


def push_data_set(folder: Path, repo_id: str, summary: dict, has_images: bool) -> str:
    """Publish a prepared data set, or its annotations, with a card.

    Args:
        folder (`Path`): Holds `frames/SPLIT/*.parquet`; the card and `summary.json` are written into it.
        repo_id (`str`): Of the data set on the Hub, which is made if there is none.
        summary (`dict`): From `training.data.preparation.summarize`.
        has_images (`bool`): Whether the rows hold pictures, for the card.
    Returns:
        `str`: Address of the data set.
    Raises:
        ValueError: If the Hub refuses it; the folder is whole.
    """
    splits = [split for split in summary["clips"] if any((folder / "frames" / split).glob("*.parquet"))]
    card = Template(CARD_PATH.read_text()).substitute(
        name=repo_id,
        content="One row a frame" + ("." if has_images else ", without its picture."),
        image_row="| `image` | JPEG of the frame |\n" if has_images else "",
        data_files="\n".join(f"  - split: {split}\n    path: frames/{split}/*.parquet" for split in splits),
        lines="\n".join(f"- {line}" for line in describe(summary) if not line.startswith(" ")),
    )
    (folder / "README.md").write_text(card)
    write_json(folder / "summary.json", summary)
    # Nothing but these: the folder may hold the videos as well.
    allowed = ["README.md", "summary.json", "frames/*"]
    try:
        api = HfApi()
        address = api.create_repo(repo_id, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type="dataset", allow_patterns=allowed)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`push_to_hub` must name a data set that the token may write, got {repo_id!r}: {reason} "
            f"Everything is in {str(folder)!r}; the same command pushes it later."
        ) from error
    return str(address)
