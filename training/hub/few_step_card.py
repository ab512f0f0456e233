# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Card of a model that was distilled to few steps, from the template `model_card/few_steps.md`."""

from pathlib import Path
from typing import Any

from training.engine.run_log import read_figures
from training.hub.card_writer import find_hub_id, is_drawn, name_data, read_license, write_card
from training.metrics.validation import strip_path


def write_few_step_card(
    output_dir: Path,
    *,
    base_model: str,
    revision: str | None,
    dataset: str,
    num_steps: int,
    num_samples: int,
    num_inference_steps: int,
    teacher_forwards: int,
    license: str | None = None,
    picture: str | Path | None = None,
    **card: Any,
) -> Path:
    """Write the card of a few-step LoRA or pipeline into its folder.

    Args:
        output_dir (`Path`): Folder of the run.
        base_model, revision (`str`): Folder or Hub id of the teacher, and its revision on the Hub.
        dataset (`str`): Training data, as in [`training.data.samples.load_prepared`].
        num_steps (`int`): Optimizer steps of the training.
        num_samples (`int`): Samples per step, over all processes.
        num_inference_steps (`int`): Denoising steps that the student stores.
        teacher_forwards (`int`): Forward passes of the UNet that the teacher needs for a frame.
        license (`str`, *optional*): The Hub's name of the licence; the default is the licence on `base_model`'s card.
        picture (`str` or `Path`, *optional*): Picture to show; the default is the last validation's, for drawn data.
        card: Further arguments of [`training.hub.card_writer.write_card`], and the template's other fields: `rank`,
            `None` for a pipeline, and the teacher's `image_guidance_scale` and `pose_guidance_scale`.
    """
    data_id = find_hub_id(dataset)
    strip = strip_path(output_dir, num_steps)
    if picture is None and is_drawn(dataset) and strip.exists():
        picture = strip
    return write_card(
        output_dir,
        "few_steps.md",
        base_model=base_model,
        revision=revision,
        license={"license": license} if license else read_license(base_model, revision),
        data_id=data_id,
        measured_on={
            "dataset_type": data_id or "local",
            "dataset_name": data_id or name_data(dataset),
            "dataset_split": "validation",
        },
        caption="A photo, poses, and frames made from them in few steps",
        data=name_data(dataset),
        amount=f"{num_steps:,} steps of {num_samples} samples",
        steps=f"{num_inference_steps} step{'' if num_inference_steps == 1 else 's'}",
        teacher_forwards=teacher_forwards,
        figures=read_figures(output_dir, num_steps, "validation/"),
        picture=picture,
        **card,
    )
