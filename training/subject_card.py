# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The card of a subject of stage 2, from `model_card/subject.md`; from `base.md` where all weights were trained."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download

from training.hub import CARD_NAME
from training.model_card import TAGS, find_hub_id, write_card


PARTS = {"denoiser": "UNet and adapter", "decoder": "the VAE's decoder"}  # what trains in each phase


def write_subject_card(
    output_dir: Path,
    *,
    repo_id: str | None,
    base_model: str,
    revision: str | None = None,
    num_photos: int,
    num_steps: Mapping[str, int],
    rank: int | None,
    num_samples: int | None = None,
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: Path | None = None,
    caption: str = "Pictures made with it",
    license: str | None = None,
) -> Path:
    """Write the card of a subject beside it. No name of a folder and no secret gets into it.

    Args:
        output_dir (`Path`): Folder of the subject.
        repo_id (`str`, *optional*): Where it will be pushed, `OWNER/NAME`.
        base_model (`str`): The pipeline that it was trained on, a folder or a Hub id.
        revision (`str`, *optional*): Of `base_model` on the Hub.
        num_photos (`int`): How many photos it was trained on.
        num_steps (`Mapping[str, int]`): Optimizer steps of each phase that was not skipped, `denoiser` or `decoder`.
        rank (`int`, *optional*): Of the LoRA; `None` for a pipeline of which all weights were trained.
        num_samples (`int`, *optional*): Samples of a step, over all processes.
        options_yaml (`str`, *optional*): The run's options; those that may be published are shown.
        figures (`Mapping[str, float]`, *optional*): Measured on that person, by name.
        picture (`Path`, *optional*): Becomes `sample` in `output_dir`. Nobody may be on it who did not agree.
        caption (`str`, *optional*): Of the picture.
        license (`str`, *optional*): As the Hub names it; by default that of `base_model`'s own card, if it has one.
    Returns:
        `Path`: The card, `README.md`.
    Raises:
        ValueError: If `repo_id` is no id, or `picture` no picture's file.
    """
    is_lora = rank is not None
    data = f"{num_photos} photo{'s' if num_photos > 1 else ''} of that person"
    return write_card(
        output_dir,
        "subject.md" if is_lora else "base.md",
        repo_id=repo_id,
        base_id=find_hub_id(base_model),
        revision=revision,
        relation="adapter" if is_lora else "finetune",
        license=license or read_license(base_model, revision),
        measured_on={"dataset_type": "local", "dataset_name": "pictures of that person"},
        tags=(*TAGS, "lora") if is_lora else TAGS,
        options_yaml=options_yaml,
        figures=figures,
        picture=picture,
        caption=caption,
        data=data,
        num_photos=num_photos,
        is_trained=True,
        amount=_name_amount(num_steps, num_samples),
        parts=" and ".join(PARTS[phase] for phase in PARTS if phase in num_steps),
        rank=rank,
    )


def read_license(model: str, revision: str | None = None) -> str | None:
    """The licence that a model's own card states; `None` if it states none, or there is no card to be had.

    Args:
        model (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Of the repository on the Hub.
    """
    try:
        path = Path(model) / CARD_NAME
        path = path if Path(model).exists() else hf_hub_download(model, CARD_NAME, revision=revision)
        return ModelCard.load(path).data.license
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _name_amount(num_steps: Mapping[str, int], num_samples: int | None) -> str:
    phases = [
        f"{num_steps[phase]:,} step{'' if num_steps[phase] == 1 else 's'} of {part}"
        for phase, part in PARTS.items()
        if phase in num_steps
    ]
    return " and ".join(phases) + ("" if num_samples is None else f", of {num_samples} samples each")
