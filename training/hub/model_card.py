# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Cards: that of a model of stage 1, from `model_card/base.md`, and what it shares with that of a subject; what a
model is and came from, without paths or secrets.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from training.data.samples import PROCEDURAL
from training.engine.run_log import read_figures
from training.hub.repositories import CARD_NAME, PICTURE_SUFFIXES, SAMPLE_STEM
from training.media.pictures import copy_without_metadata
from training.metrics.validation import strip_path


logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parents[2] / "model_card"
TAGS = ("dreampose", "image-to-video", "pose", "densepose", "fashion", "diffusers-training")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
LICENSES = {
    "apache-2.0": "Apache-2.0",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M, whose restrictions of use go with them",
}
# Repositories of Stable Diffusion 1.x itself, whose licence is known.
STABLE_DIFFUSION = {
    *(f"CompVis/stable-diffusion-v1-{version}" for version in range(1, 5)),
    "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
# Options whose values name repositories on the Hub, or folders.
SOURCES = ("pretrained_model_name_or_path", "image_encoder_name_or_path", "train_data", "prior_dataset")
PRIVATE_OPTIONS = re.compile(r"_dir$|^hub_|^push_|^resume_|token|secret|password|credential|api_key")
# Of figures: which way is better.
ARROWS = {"psnr": "↑", "ssim": "↑", "l1": "↓", "lpips": "↓", "fid": "↓", "temporal_error": "↓"}


def write_base_card(
    output_dir: Path,
    *,
    repo_id: str | None,
    base_model: str,
    revision: str | None = None,
    dataset: str | None = None,
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: Path | None = None,
    license: str | None = None,
    num_steps: int | None = None,
    num_samples: int | None = None,
    parts: Sequence[str] = ("UNet", "adapter"),
    conversion: str = "",
) -> Path:
    """Write the card of a model of stage 1 beside it. No name of a folder and no secret gets into it.

    Args:
        output_dir (`Path`): Folder of the pipeline.
        repo_id (`str`, *optional*): Where it will be pushed, `OWNER/NAME`.
        base_model (`str`): What the training started from, as `training.models.base_pipeline.load_base_pipeline` takes
            it.
        revision (`str`, *optional*): Of `base_model` on the Hub.
        dataset (`str`, *optional*): What it was trained on, as `training.data.samples.load_prepared` takes it;
            `None` for converted weights.
        options_yaml (`str`, *optional*): The run's options; [`public_settings`] of them are shown.
        figures (`Mapping[str, float]`, *optional*): Of the last validation, by name.
        picture (`Path`, *optional*): Of a photo, poses and frames; becomes `sample` in `output_dir`. Nobody may be on
            it who did not agree, such as the people of UBC Fashion.
        license (`str`, *optional*): Of the model, as the Hub names it; by default Stable Diffusion's own if
            `base_model` is that on the Hub, else none is stated.
        num_steps (`int`, *optional*): Optimizer steps that it was trained, 0 for a pipeline that was only widened.
        num_samples (`int`, *optional*): Samples of a step, over all processes.
        parts (`Sequence[str]`, *optional*, defaults to `("UNet", "adapter")`): What of the model was trained.
        conversion (`str`, *optional*): Of converted weights: where they came from, in place of how they were trained.
    Returns:
        `Path`: The card, `README.md`.
    Raises:
        ValueError: If `repo_id` is no id, or `picture` no picture's file.
    """
    base_id, data_id = find_hub_id(base_model), find_hub_id(dataset) if dataset else None
    if license is None and base_id in STABLE_DIFFUSION:
        license = "creativeml-openrail-m"
    return write_card(
        output_dir,
        "base.md",
        repo_id=repo_id,
        base_id=base_id,
        revision=revision,
        relation="finetune",
        license=license,
        data_id=data_id,
        measured_on={
            "dataset_type": data_id or (PROCEDURAL if dataset and is_drawn(dataset) else "local"),
            "dataset_name": data_id or name_data(dataset),
            "dataset_split": "validation",
        },
        options_yaml=options_yaml,
        figures=figures,
        picture=picture,
        caption="A photo, poses, and frames made from them",
        data=name_data(dataset),
        is_trained=num_steps != 0,
        amount=_name_amount(num_steps, num_samples),
        parts=_name_parts(parts),
        is_one_part=len(parts) == 1,
        conversion=conversion,
    )


def write_card(
    output_dir: Path,
    template: str,
    *,
    repo_id: str | None,
    base_id: str | None,
    revision: str | None,
    relation: str,
    license: str | None,
    measured_on: Mapping[str, str],
    caption: str,
    license_terms: Mapping[str, str] | None = None,
    data_id: str | None = None,
    tags: Sequence[str] = TAGS,
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: Path | None = None,
    **fields: Any,
) -> Path:
    """Fill a template with what all cards have, and what is its own.

    Args:
        output_dir (`Path`): Where the card goes, as `README.md`.
        template (`str`): Its name in `model_card/`.
        repo_id (`str`, *optional*): Where it will be pushed, `OWNER/NAME`.
        base_id, revision (`str`, *optional*): What the training started from, if that is on the Hub.
        relation (`str`): To that, as the Hub names it: `"finetune"` or `"adapter"`.
        license (`str`, *optional*): As the Hub names it.
        measured_on (`Mapping[str, str]`): What the figures are of, as arguments of `EvalResult`.
        caption (`str`): Of the picture.
        license_terms (`Mapping[str, str]`, *optional*): Of the licence `other`: its `license_name` and `license_link`.
        data_id (`str`, *optional*): Of the training data on the Hub.
        tags (`Sequence[str]`, *optional*): For the Hub's search.
        options_yaml (`str`, *optional*): The run's options; [`public_settings`] of them are shown.
        figures (`Mapping[str, float]`, *optional*): By name; those that are not finite are left out.
        picture (`Path`, *optional*): Becomes `sample` in `output_dir`.
        fields: What the template has besides.
    Returns:
        `Path`: The card.
    Raises:
        ValueError: If `repo_id` is no id, or `picture` no picture's file.
    """
    output_dir = Path(output_dir)
    if repo_id is not None and not ("/" in repo_id and is_repo_id(repo_id)):
        raise ValueError(f"`repo_id` must be OWNER/NAME, got {repo_id!r}.")
    sample = None if picture is None else _copy_sample(Path(picture), output_dir)
    title = repo_id.split("/")[1] if repo_id else "DreamPose"
    figures = {name: value for name, value in (figures or {}).items() if math.isfinite(value)}
    settings = public_settings(options_yaml)
    results = [
        EvalResult("image-to-video", metric_type=name, metric_value=round(float(value), 4), **measured_on)
        for name, value in figures.items()
    ]
    data = ModelCardData(
        license=license,
        **(license_terms or {}),
        pipeline_tag="image-to-video",
        base_model=base_id,
        base_model_relation=relation if base_id else None,
        datasets=[data_id] if data_id else None,
        widget=[{"text": caption, "output": {"url": sample}}] if sample else None,
        eval_results=results or None,
        model_name=title if results else None,
    )
    fields |= {"base_id": base_id, "revision": revision if base_id else None, "base": _name_base(base_id, revision)}
    fields |= {"title": title, "repo_id": repo_id, "picture": sample, "caption": caption, "figures": _table(figures)}
    card = ModelCard.from_template(
        card_data=data,
        template_path=str(TEMPLATES / template),
        versions=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        settings=yaml.safe_dump(settings, sort_keys=False).strip() if settings else "",
        base_license=_name_license(license, license_terms or {}),
        **fields,
    )
    card = populate_model_card(card, tags=list(tags))
    card.text = card.text.rstrip() + "\n"
    card.save(output_dir / CARD_NAME)
    return output_dir / CARD_NAME


def try_write_card(
    write: Callable[..., Path], output_dir: Path, repo_id: str | None = None, **card: Any
) -> Path | None:
    """Write a card at the end of a run, which must not fail for it: what goes wrong is a warning.

    Args:
        write (`Callable`): [`write_base_card`] or [`training.hub.subject_card.write_subject_card`].
        output_dir (`Path`): Where the card goes.
        repo_id (`str`, *optional*): Where it will be pushed, as far as that is known: `OWNER/NAME`, or `NAME`, for
            which the push puts the full one into the card.
        card: Further arguments of `write`.
    Returns:
        `Path` or `None`: The card, if it could be written.
    """
    try:
        return write(output_dir, repo_id=repo_id if repo_id and "/" in repo_id else None, **card)
    except Exception as error:  # of whatever the folder, the picture and the base model's own card hold
        logger.warning(f"The card of {output_dir} could not be written: {error}")
        return None


def find_hub_id(name: str) -> str | None:
    """The name of a model or data set if it is one on the Hub, `None` for a folder and what is drawn by code.

    Args:
        name (`str`): As a trainer takes it.
    """
    is_elsewhere = Path(name).exists() or name.partition("/")[0] == PROCEDURAL
    return name if not is_elsewhere and "/" in name and is_repo_id(name) else None


def public_settings(options_yaml: str) -> dict[str, Any]:
    """Those of a run's options that may be published: numbers, choices, ids on the Hub; no place and no secret.

    Args:
        options_yaml (`str`): From `training.options.parsing.format_options`.
    Returns:
        `dict`: By name, in the order of `options_yaml`.
    """
    options = yaml.safe_load(options_yaml) or {}
    return {
        name: value for name, value in options.items() if not PRIVATE_OPTIONS.search(name) and _is_public(name, value)
    }


def _is_public(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_public(name, item) for item in value)
    if not isinstance(value, str):
        return value is None or isinstance(value, bool | int | float)
    if name in SOURCES:
        return find_hub_id(value) is not None or is_drawn(value)
    # A choice is one short word; a commit is longer.
    rule = r"\w[\w.-]{0,39}" if name == "revision" else r"[A-Za-z]\w{0,23}"
    return re.fullmatch(rule, value) is not None and not value.startswith("hf_") and not Path(value).exists()


def is_repo_id(name: str) -> bool:
    """Whether a repository on the Hub may have this name, `OWNER/NAME`, or `NAME` for the token's own."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_drawn(dataset: str) -> bool:
    """Whether a data set, as a trainer takes it, is drawn by code, so that nobody real is on it."""
    return re.fullmatch(rf"{PROCEDURAL}(/\w+)?", dataset) is not None and not Path(dataset).exists()


def _copy_sample(picture: Path, output_dir: Path) -> str:
    """Put a picture beside the card, without what else its file tells; returns its name there."""
    if not picture.is_file() or picture.suffix.lower() not in PICTURE_SUFFIXES:
        names = ", ".join(PICTURE_SUFFIXES)
        raise ValueError(f"`picture` must be a file of {names}, got {str(picture)!r}.")
    sample = output_dir / f"{SAMPLE_STEM}{picture.suffix.lower()}"
    copy_without_metadata(picture, sample)
    return sample.name


def _name_license(license: str | None, terms: Mapping[str, str]) -> str:
    """A licence for the card's text; that of the base where it is not known."""
    name = terms.get("license_name") or LICENSES.get(license, license) or "as stated there"
    return f"[{name}]({terms['license_link']})" if "license_link" in terms else name


def _name_base(base_id: str | None, revision: str | None) -> str:
    if base_id is None:
        return "a pipeline that is not on the Hub"
    at = f" at `{revision}`" if revision else ""
    return f"[{base_id}](https://huggingface.co/{base_id}){at}"


def name_data(dataset: str | None) -> str:
    """What a card says of a prepared data set, by its name as an option has it: no folder's name gets onto a card."""
    if dataset is None:
        return "data that is not known"
    if is_drawn(dataset):
        return f"procedurally drawn figures (`{dataset}`)"
    if find_hub_id(dataset) is None:
        return "a data set that is not on the Hub"
    return f"[{dataset}](https://huggingface.co/datasets/{dataset})"


def _name_amount(num_steps: int | None, num_samples: int | None) -> str:
    if num_steps is None:
        return ""
    return f"{num_steps:,} steps" + ("" if num_samples is None else f" of {num_samples} samples")


def _name_parts(parts: Sequence[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def _table(figures: Mapping[str, float]) -> str:
    """A Markdown table of one row; empty without figures."""
    if not figures:
        return ""
    names = [f"{name.replace('_', ' ')} {ARROWS.get(name, '')}".strip() for name in figures]
    rows = [names, ["---"] * len(names), [f"{value:.4g}" for value in figures.values()]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
