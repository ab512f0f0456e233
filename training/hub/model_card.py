# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Model cards, without paths or secrets: the card of a stage 1 model and the parts that all cards share.

[`write_card`] fills a template of `model_card/`. [`write_base_card`] writes the card of a stage 1 model,
[`training.hub.subject_card.write_subject_card`] that of a subject, and [`write_run_card`] that of a run of stage 1.
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
    "creativeml-openrail-m": "CreativeML OpenRAIL-M, whose use restrictions apply to them too",
}
# Repositories of Stable Diffusion 1.x, whose licence is known.
STABLE_DIFFUSION = {
    *(f"CompVis/stable-diffusion-v1-{version}" for version in range(1, 5)),
    "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
# Options whose values name a repository on the Hub or a folder.
SOURCES = ("pretrained_model_name_or_path", "image_encoder_name_or_path", "train_data", "prior_dataset")
PRIVATE_OPTIONS = re.compile(r"_dir$|^hub_|^push_|^resume_|token|secret|password|credential|api_key")
# Direction in which each figure is better.
ARROWS = {"psnr": "↑", "ssim": "↑", "l1": "↓", "lpips": "↓", "fid": "↓", "temporal_error": "↓"}


def write_base_card(
    output_dir: Path,
    *,
    base_model: str,
    revision: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    num_steps: int | None = None,
    num_samples: int | None = None,
    parts: Sequence[str] = ("UNet", "adapter"),
    conversion: str = "",
    repo_id: str | None,
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: Path | None = None,
) -> Path:
    """Write the card of a stage 1 model into its folder, without folder names or secrets.

    Args:
        output_dir (`Path`): Folder of the pipeline.
        base_model (`str`): Folder or Hub id of the model that training started from.
        revision (`str`, *optional*): Revision of `base_model` on the Hub.
        dataset (`str`, *optional*): Training data, as in [`training.data.samples.load_prepared`]; `None` for converted
            weights.
        license (`str`, *optional*): The Hub's name of the model's licence. The default is Stable Diffusion's licence
            if `base_model` is one of its repositories on the Hub, else none is stated.
        num_steps (`int`, *optional*): Optimizer steps of the training, 0 for a pipeline that was only widened.
        num_samples (`int`, *optional*): Samples per step, over all processes.
        parts (`Sequence[str]`, *optional*, defaults to `("UNet", "adapter")`): The trained parts of the model.
        conversion (`str`, *optional*): Origin of converted weights; replaces the text about the training.
        repo_id, options_yaml, figures, picture: See [`write_card`], also for the errors.
    Returns:
        `Path`: The card, `README.md`.
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
    """Fill a template with the fields that all cards have and with further `fields`.

    Args:
        output_dir (`Path`): Folder of the card, `README.md`.
        template (`str`): File name of the template in `model_card/`.
        repo_id (`str`, *optional*): Repository that the model will be pushed to, `OWNER/NAME`.
        base_id, revision (`str`, *optional*): Hub id and revision of the model that training started from.
        relation (`str`): The Hub's name of the relation to that model: `"finetune"` or `"adapter"`.
        license (`str`, *optional*): The Hub's name of the licence.
        measured_on (`Mapping[str, str]`): Data that the figures were measured on, as arguments of `EvalResult`.
        caption (`str`): Caption of the picture.
        license_terms (`Mapping[str, str]`, *optional*): `license_name` and `license_link` of the licence `other`.
        data_id (`str`, *optional*): Hub id of the training data.
        tags (`Sequence[str]`, *optional*): Tags for the Hub's search.
        options_yaml (`str`, *optional*): The run's options; the card shows their [`public_settings`].
        figures (`Mapping[str, float]`, *optional*): Figures by name; those that are not finite are left out.
        picture (`Path`, *optional*): Picture to copy into `output_dir` as `sample`. Everybody on it must have agreed;
            the people of UBC Fashion did not.
        fields: Further fields of the template.
    Raises:
        ValueError: If `repo_id` is not a valid id, or `picture` is not the file of a picture.
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
    """Write a card at the end of a run; an error becomes a warning, so that it does not fail the run.

    Args:
        write (`Callable`): [`write_base_card`] or [`training.hub.subject_card.write_subject_card`].
        output_dir (`Path`): Folder of the card.
        repo_id (`str`, *optional*): Repository that the model will be pushed to, `OWNER/NAME` or `NAME`; for the
            latter, the push puts the full id into the card.
        card: Further arguments of `write`.
    Returns:
        `Path` or `None`: The card, or `None` after an error.
    """
    try:
        return write(output_dir, repo_id=repo_id if repo_id and "/" in repo_id else None, **card)
    except Exception as error:  # from whatever the folder, the picture and the base model's card contain
        logger.warning(f"The card of {output_dir} could not be written: {error}")
        return None


def write_run_card(
    output_dir: str | os.PathLike,
    num_steps: int,
    dataset: str,
    picture: str | None = None,
    repo_id: str | None = None,
    **card: Any,
) -> None:
    """Write the card of a run of stage 1, with the figures of its last validation; an error becomes a warning.

    Args:
        output_dir (`str` or `os.PathLike`): Output folder of the run.
        num_steps (`int`): Optimizer steps of the run.
        dataset (`str`): Training data.
        picture (`str`, *optional*): Picture for the card. The default is the last validation's strip if the training
            data is drawn, so that it shows no real person.
        repo_id (`str`, *optional*): See [`try_write_card`].
        card: Further arguments of [`write_base_card`].
    """
    strip = strip_path(output_dir, num_steps)
    if picture is None and is_drawn(dataset) and strip.exists():
        picture = strip

    def write(output_dir: Path, **card: Any) -> Path:
        return write_base_card(output_dir, figures=read_figures(output_dir, num_steps, "validation/"), **card)

    card |= {"dataset": dataset, "num_steps": num_steps, "picture": picture}
    try_write_card(write, Path(output_dir), repo_id, **card)


def find_hub_id(name: str) -> str | None:
    """Return the name of a model or data set if it is a Hub id; return `None` for a folder and for drawn data."""
    is_elsewhere = Path(name).exists() or name.partition("/")[0] == PROCEDURAL
    return name if not is_elsewhere and "/" in name and is_repo_id(name) else None


def public_settings(options_yaml: str) -> dict[str, Any]:
    """Return the options of a run that may be published: numbers, choices and Hub ids, but no paths and no secrets.

    `options_yaml` comes from `training.options.parsing.format_options`; the result keeps its order.
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
    # A choice is one short word, a commit is longer.
    rule = r"\w[\w.-]{0,39}" if name == "revision" else r"[A-Za-z]\w{0,23}"
    return re.fullmatch(rule, value) is not None and not value.startswith("hf_") and not Path(value).exists()


def is_repo_id(name: str) -> bool:
    """Tell whether this is a valid name of a repository on the Hub: `OWNER/NAME`, or `NAME` for the token's owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_drawn(dataset: str) -> bool:
    """Tell whether a data set is drawn by code, so that it shows no real person."""
    return re.fullmatch(rf"{PROCEDURAL}(/\w+)?", dataset) is not None and not Path(dataset).exists()


def _copy_sample(picture: Path, output_dir: Path) -> str:
    """Copy a picture into the card's folder without its metadata; return its name there."""
    if not picture.is_file() or picture.suffix.lower() not in PICTURE_SUFFIXES:
        names = ", ".join(PICTURE_SUFFIXES)
        raise ValueError(f"`picture` must be a file of {names}, got {str(picture)!r}.")
    sample = output_dir / f"{SAMPLE_STEM}{picture.suffix.lower()}"
    copy_without_metadata(picture, sample)
    return sample.name


def _name_license(license: str | None, terms: Mapping[str, str]) -> str:
    """Name a licence in the card's text; an unknown one is that of the base model."""
    name = terms.get("license_name") or LICENSES.get(license, license) or "as stated there"
    return f"[{name}]({terms['license_link']})" if "license_link" in terms else name


def _name_base(base_id: str | None, revision: str | None) -> str:
    if base_id is None:
        return "a pipeline that is not on the Hub"
    at = f" at `{revision}`" if revision else ""
    return f"[{base_id}](https://huggingface.co/{base_id}){at}"


def name_data(dataset: str | None) -> str:
    """Describe a prepared data set on a card by the value of its option, without a folder's name."""
    if dataset is None:
        return "unknown data"
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
    """Format figures as a Markdown table of one row; return "" without figures."""
    if not figures:
        return ""
    names = [f"{name.replace('_', ' ')} {ARROWS.get(name, '')}".strip() for name in figures]
    rows = [names, ["---"] * len(names), [f"{value:.4g}" for value in figures.values()]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
