# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Lines that stage 2 prints: what the run will do before it starts, and the next command at its end."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_dreampose import DreamPosePipeline
from training.engine.messages import shorten
from training.models.run_costs import is_full_size
from training.subject.phases import TITLES


# Counted for the full-size model at 512x640 with one sample at a time and gradient checkpointing, in GB, by mixed
# precision and whether the decoder trains (`benchmarks/subjects/memory.json`).
COUNTED = {("no", True): 5.8, ("bf16", True): 5.4, ("bf16", False): 2.9}


def summarize_run(
    pipeline: DreamPosePipeline,
    photos: Sequence[Path],
    arguments: Mapping[str, Mapping[str, Any]],
    batch_size: int,
    options: Mapping[str, Any],
) -> list[str]:
    """Return five lines about photos, other people, steps, memory and time.

    Args:
        pipeline (`DreamPosePipeline`): The model to start from.
        photos (`Sequence[Path]`): The subject's photos.
        arguments (`Mapping[str, Mapping[str, Any]]`): Phase -> keyword arguments of its training.
        batch_size (`int`): Samples per optimizer step of UNet and adapter, over all processes.
        options (`Mapping[str, Any]`): Options of the run by name.
    """
    height, width = pipeline.config.default_height, pipeline.config.default_width
    steps = [f"{values['max_train_steps']} of the {TITLES[phase]}" for phase, values in arguments.items()]
    facts = ((height, width) == (640, 512), options["train_batch_size"] == 1, options["gradient_checkpointing"])
    counted = COUNTED.get((options["mixed_precision"], "decoder" in arguments))
    facts += (options["prior_dataset"] is None or not options["num_textured_clips"],)  # sampling was not counted
    is_known = counted is not None and all(facts) and is_full_size(pipeline.unet.config.block_out_channels)
    memory = (
        f"about {counted} GB on a GPU, without what CUDA itself takes" if is_known else "not known for these settings"
    )
    names = ", ".join(photo.name for photo in photos[:3]) + (", ..." if len(photos) > 3 else "")
    if options["prior_dataset"] is None:
        prior = "none (no --prior_dataset): poses that no photo shows may get worse, see docs/subjects.md"
    else:
        prior = f"{options['prior_prob']:.0%} of the samples, from {shorten(options['prior_dataset'])}"
        if options["num_textured_clips"]:
            prior += f", and the poses of up to {options['num_textured_clips']} of its clips with the photos' texture"
    return [
        f"photos:       {len(photos)} ({names}), shown to the model at {width}x{height}",
        f"other people: {prior}",
        f"steps:        {', then '.join(steps)}; {batch_size} samples each",
        f"memory:       {memory}",
        "time:         the bars below name the part that trains and show the time left",
    ]


def next_command(output_dir: str | os.PathLike, base_model: str, photo: Path, is_lora: bool) -> str:
    """Return the command that animates the subject."""
    model = ["--model", base_model, "--lora", str(output_dir)] if is_lora else ["--model", str(output_dir)]
    words = ["python", "animate.py", *model, "--image", str(photo), "--poses", "POSES", "--output", "video.mp4"]
    return shlex.join(words)
