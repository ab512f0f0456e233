# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Card of a subject of stage 2, from `model_card/subject.md`, or from `base.md` after full training."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

from training.hub.model_card import TAGS, find_hub_id, name_data, write_card
from training.hub.repositories import CARD_NAME


logger = logging.getLogger(__name__)

PARTS = {"denoiser": "UNet and adapter", "decoder": "the VAE's decoder"}  # the parts that train in each phase
LICENSE_NAME = "[a-z0-9.-]+"  # names that the Hub accepts


def write_subject_card(
    output_dir: Path,
    *,
    base_model: str,
    revision: str | None = None,
    num_photos: int | None = None,
    prior_dataset: str | None = None,
    prior_prob: float = 0.0,
    num_steps: Mapping[str, int] | None = None,
    rank: int | None,
    num_samples: int | None = None,
    license: str | None = None,
    parts: Sequence[str] | None = None,
    conversion: str = "",
    repo_id: str | None,
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: Path | None = None,
    caption: str = "Pictures made with it",
) -> Path:
    """Write the card of a subject into its folder, without folder names or secrets.

    Args:
        output_dir (`Path`): Folder of the subject.
        base_model (`str`): Folder or Hub id of the pipeline that the subject was trained on.
        revision (`str`, *optional*): Revision of `base_model` on the Hub.
        num_photos (`int`, *optional*): Number of training photos, if it is known.
        prior_dataset (`str`, *optional*): Prepared data set of other people that was used in training.
        prior_prob (`float`, *optional*, defaults to 0.0): Share of the samples from `prior_dataset`.
        num_steps (`Mapping[str, int]`, *optional*): Optimizer steps of the phases `denoiser` and `decoder`, without a
            skipped one.
        rank (`int`, *optional*): Rank of the LoRA; `None` for a pipeline whose weights were all trained.
        num_samples (`int`, *optional*): Samples per step, over all processes.
        license (`str`, *optional*): The Hub's name of the licence; the default is the licence on `base_model`'s card.
        parts (`Sequence[str]`, *optional*): The parts of the model that the LoRA changes; the default follows
            `num_steps`.
        conversion (`str`, *optional*): Origin of converted weights; replaces the text about the training.
        repo_id, options_yaml, figures, picture, caption: See [`training.hub.model_card.write_card`], also for the
            errors.
    Returns:
        `Path`: The card, `README.md`.
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
    """Return the licence on the card of a model, a folder or a Hub id.

    The result is `None` if there is no card, or if the card states several licences or none that the Hub accepts.
    """
    stated = _read_front_matter(model, revision).get("license")
    if isinstance(stated, list) and len(stated) == 1:
        (stated,) = stated
    return stated if _is_match(LICENSE_NAME, stated) else None


def read_license_terms(model: str, revision: str | None = None) -> dict[str, str]:
    """Return `license_name` and `license_link` from the card of a model whose licence is `other`.

    Values that the Hub does not accept are left out. The name of a file in the repository becomes a full link.
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
    """Read the front matter of a model's card, which may hold anything; return {} if it cannot be read."""
    try:
        path = Path(model) / CARD_NAME
        path = path if Path(model).exists() else Path(hf_hub_download(model, CARD_NAME, revision=revision))
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # whatever the library finds in a file of unknown origin
        logger.warning(f"The card of {model} could not be read: {error}")
        return {}


def _name_amount(num_steps: Mapping[str, int], num_samples: int | None) -> str:
    phases = [
        f"{num_steps[phase]:,} step{'' if num_steps[phase] == 1 else 's'} of {part}"
        for phase, part in PARTS.items()
        if phase in num_steps
    ]
    return " and ".join(phases) + ("" if num_samples is None else f", of {num_samples} samples each")
