# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The card of a subject of stage 2, from `model_card/subject.md`; from `base.md` where all weights were trained."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

from training.hub.model_card import TAGS, find_hub_id, name_data, write_card
from training.hub.repositories import CARD_NAME


logger = logging.getLogger(__name__)

PARTS = {"denoiser": "UNet and adapter", "decoder": "the VAE's decoder"}  # what trains in each phase

LICENSE_NAME = "[a-z0-9.-]+"  # what the Hub takes as one


def write_subject_card(
    output_dir: Path,
    *,
    repo_id: str | None,
    base_model: str,
    revision: str | None = None,
    num_photos: int | None = None,
    prior_dataset: str | None = None,
    prior_prob: float = 0.0,
    num_steps: Mapping[str, int] | None = None,
    rank: int | None,
    num_samples: int | None = None,
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: Path | None = None,
    caption: str = "Pictures made with it",
    license: str | None = None,
    parts: Sequence[str] | None = None,
    conversion: str = "",
) -> Path:
    """Write the card of a subject beside it. No name of a folder and no secret gets into it.

    Args:
        output_dir (`Path`): Folder of the subject.
        repo_id (`str`, *optional*): Where it will be pushed, `OWNER/NAME`.
        base_model (`str`): The pipeline that it was trained on, a folder or a Hub id.
        revision (`str`, *optional*): Of `base_model` on the Hub.
        num_photos (`int`, *optional*): How many photos it was trained on, as far as that is known.
        prior_dataset (`str`, *optional*): Prepared data set of others that it was trained on too.
        prior_prob (`float`, *optional*, defaults to 0.0): Its share of the samples.
        num_steps (`Mapping[str, int]`, *optional*): Optimizer steps of each phase that was not skipped, `denoiser` or
            `decoder`.
        rank (`int`, *optional*): Of the LoRA; `None` for a pipeline of which all weights were trained.
        num_samples (`int`, *optional*): Samples of a step, over all processes.
        options_yaml (`str`, *optional*): The run's options; those that may be published are shown.
        figures (`Mapping[str, float]`, *optional*): Measured on that person, by name.
        picture (`Path`, *optional*): Becomes `sample` in `output_dir`. Nobody may be on it who did not agree.
        caption (`str`, *optional*): Of the picture.
        license (`str`, *optional*): As the Hub names it; by default that of `base_model`'s own card, if it has one.
        parts (`Sequence[str]`, *optional*): What of the model the LoRA is of; by default what `num_steps` were of.
        conversion (`str`, *optional*): Of converted weights: where they came from, in place of how they were trained.
    Returns:
        `Path`: The card, `README.md`.
    Raises:
        ValueError: If `repo_id` is no id, or `picture` no picture's file.
    """
    is_lora, num_steps = rank is not None, num_steps or {}
    terms = {} if license else read_license_terms(base_model, revision)
    data = f"{num_photos} photo{'' if num_photos == 1 else 's'} of that person"
    if prior_dataset is not None:
        data += f" ({prior_prob:.0%} of the samples: of others, from {name_data(prior_dataset)})"
    return write_card(
        output_dir,
        "subject.md" if is_lora else "base.md",
        repo_id=repo_id,
        base_id=find_hub_id(base_model),
        revision=revision,
        relation="adapter" if is_lora else "finetune",
        license=license or read_license(base_model, revision),
        license_terms=terms,
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
        phases=list(num_steps),
        parts=" and ".join(parts or [PARTS[phase] for phase in PARTS if phase in num_steps]),
        conversion=conversion,
        rank=rank,
    )


def read_license(model: str, revision: str | None = None) -> str | None:
    """The licence that a model's own card states; `None` if it states none that the Hub would take or several, or
    there is no card to be had.

    Args:
        model (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Of the repository on the Hub.
    """
    stated = _read_front_matter(model, revision).get("license")
    if isinstance(stated, list) and len(stated) == 1:
        (stated,) = stated
    return stated if _is_match(LICENSE_NAME, stated) else None


def read_license_terms(model: str, revision: str | None = None) -> dict[str, str]:
    """The `license_name` and `license_link` that a model's own card states where its licence is `other`.

    Args:
        model (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Of the repository on the Hub.
    Returns:
        `dict[str, str]`: Those of the two that the Hub would take; a link to a file of the repository is one to there.
    """
    if read_license(model, revision) != "other":
        return {}
    data, terms = _read_front_matter(model, revision), {}
    if _is_match(LICENSE_NAME, data.get("license_name")):
        terms["license_name"] = data["license_name"]
    link = data.get("license_link")
    if _is_match(r"[\w.-]+", link) and find_hub_id(model):
        link = f"https://huggingface.co/{model}/blob/{revision or 'main'}/{link}"
    if _is_match(r"https?://[^\s()|<>\"']+", link):
        terms["license_link"] = link
    return terms


def _is_match(rule: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(rule, value) is not None


def _read_front_matter(model: str, revision: str | None) -> dict[str, Any]:
    """That of a model's own card, of which nothing is known; empty if there is none that can be read."""
    try:
        path = Path(model) / CARD_NAME
        path = path if Path(model).exists() else Path(hf_hub_download(model, CARD_NAME, revision=revision))
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # whatever the library meets in a file of unknown origin
        logger.warning(f"The card of {model} could not be read: {error}")
        return {}


def _name_amount(num_steps: Mapping[str, int], num_samples: int | None) -> str:
    phases = [
        f"{num_steps[phase]:,} step{'' if num_steps[phase] == 1 else 's'} of {part}"
        for phase, part in PARTS.items()
        if phase in num_steps
    ]
    return " and ".join(phases) + ("" if num_samples is None else f", of {num_samples} samples each")
