# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The trackers of a run, TensorBoard and Weights & Biases: their start, and the pictures and videos they get.

Numbers reach the trackers through `Accelerator.log`.
"""

import os
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from training.engine.messages import one_line


TRACKERS = ("tensorboard", "wandb")


def installed_trackers(report_to: str | None) -> list[str]:
    """Return the names of a run's trackers: none, one of `TRACKERS`, or `"all"` that are installed.

    Raises:
        ValueError: If the package is not installed. accelerate would silently skip it.
    """
    if report_to is None:
        return []
    if report_to == "all":
        return [name for name in TRACKERS if find_spec(name) is not None]
    if report_to not in TRACKERS or find_spec(report_to) is None:
        names = ", ".join(TRACKERS)
        raise ValueError(f"`report_to` must be one of {names} that is installed (by pip), or all, got {report_to!r}.")
    return [report_to]


def tracker_arguments(trackers: list[str], output_dir: str | os.PathLike, first_step: int) -> dict[str, dict]:
    """Return the arguments that start each tracker, so that a run resumed at `first_step` stays one run there.

    TensorBoard hides the records after that step, at step 0 all of them. Weights & Biases keeps its records after that
    step and ignores new ones for the same steps. Its run id is kept in `OUTPUT_DIR/wandb_id`; step 0 makes a new one.
    """
    arguments = {}
    if "tensorboard" in trackers:
        arguments["tensorboard"] = {"purge_step": first_step + 1}
    if "wandb" in trackers:
        file = Path(output_dir) / "wandb_id"
        if first_step == 0 or not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(uuid.uuid4().hex[:8])
        arguments["wandb"] = {"dir": str(output_dir), "id": file.read_text(), "resume": "allow"}
    return arguments


def start_trackers(
    accelerator: Accelerator,
    trackers: list[str],
    output_dir: str | os.PathLike,
    settings: Mapping[str, Any],
    first_step: int,
) -> None:
    """Start the trackers of a run, on its main process.

    Raises:
        ValueError: If one cannot be started, like Weights & Biases without an API key.
    """
    if not trackers:
        return
    # Trackers accept only plain values as hyperparameters.
    plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in settings.items()}
    arguments = tracker_arguments(trackers, output_dir, first_step)
    try:
        accelerator.init_trackers("dreampose", plain, arguments)
    except Exception as error:  # a tracker's package or server may raise anything
        reason = one_line(error, 500) or type(error).__name__
        names = ", ".join(trackers)
        raise ValueError(f"`report_to` must be a tracker that can be started, got {names}: {reason}") from error


def log_animation(accelerator: Accelerator, name: str, strip: Path, video: Path, gif: Path, step: int) -> None:
    """Show an animated clip in the run's trackers, under `name`, and its strip (one picture) under `{name}_strip`.

    TensorBoard gets the GIF, Weights & Biases the video.
    """
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            from tensorboard.compat.proto.summary_pb2 import Summary

            pixels = np.asarray(Image.open(strip).convert("RGB"))[None]
            tracker.log_images({f"{name}_strip": pixels}, step=step, dataformats="NHWC")
            # A GIF moves among the images. TensorBoard's `add_video` would need moviepy.
            width, height = Image.open(gif).size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif.read_bytes())
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            tracker.writer._get_file_writer().add_summary(summary, step)
        elif tracker.name == "wandb":
            import wandb

            tracker.log_images({f"{name}_strip": [Image.open(strip)]}, step=step)
            tracker.log({name: wandb.Video(str(video))}, step=step)
