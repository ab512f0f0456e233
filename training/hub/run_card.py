# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The card of what a stage-1 run made, from what the run left; a run that is through does not fail for it."""

import os
from pathlib import Path
from typing import Any

from training.engine.run_log import read_figures
from training.hub.model_card import is_drawn, try_write_card, write_base_card
from training.metrics.validation import strip_path


def describe_run(
    output_dir: str | os.PathLike,
    num_steps: int,
    dataset: str,
    picture: str | None = None,
    repo_id: str | None = None,
    **card: Any,
) -> None:
    """Write the card with the figures of the last step's validation; if it cannot be written, say so.

    Args:
        output_dir (`str` or `os.PathLike`): Of the run.
        num_steps (`int`): Its last step.
        dataset (`str`): What it was trained on.
        picture (`str`, *optional*): For the card; by default, if nobody real is on it, the last validation's strip.
        repo_id (`str`, *optional*): Where it will be pushed, as far as that is known: `OWNER/NAME`, or `NAME`.
        card: Further arguments of [`training.hub.model_card.write_base_card`].
    """
    strip = strip_path(output_dir, num_steps)
    if picture is None and is_drawn(dataset) and strip.exists():
        picture = strip

    def write(output_dir: Path, **card: Any) -> Path:
        return write_base_card(output_dir, figures=read_figures(output_dir, num_steps, "validation/"), **card)

    card |= {"dataset": dataset, "num_steps": num_steps, "picture": picture}
    try_write_card(write, Path(output_dir), repo_id, **card)
