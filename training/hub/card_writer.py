# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Model cards, without paths or secrets: [`write_card`] fills a template of `model_card/`.

[`write_base_card`] writes the card of a stage 1 model, [`write_run_card`] that of a run of stage 1, and
[`write_subject_card`] that of a subject of stage 2.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download

from training.data.samples import PROCEDURAL
from training.engine.messages import markdown_text
from training.engine.run_log import read_figures
from training.hub.repositories import CARD_NAME, PICTURE_SUFFIXES, SAMPLE_STEM, is_repo_id
from training.media.pictures import copy_without_metadata
from training.metrics.validation import strip_path


logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parents[2] / "model_card"
TAGS = ("dreampose", "image-to-video", "pose", "densepose", "fashion", "diffusers-training")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
PARTS = {"denoiser": "UNet and adapter", "decoder": "the VAE's decoder"}  # the parts that train in each phase
LICENSES = {
    "apache-2.0": "Apache-2.0",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M, whose use restrictions apply to them too",
}
LICENSE_NAME = "[a-z0-9.-]+"  # names that the Hub accepts
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
    dataset: str | None = None,
    license: str | None = None,
    num_steps: int | None = None,
    num_samples: int | None = None,
    parts: Sequence[str] = ("UNet", "adapter"),
    **card: Any,
) -> Path:
    """Write the card of a stage 1 model into its folder.

    Args:
        output_dir (`Path`): Folder of the pipeline.
        base_model (`str`): Folder or Hub id of the model that training started from.
        dataset (`str`, *optional*): Training data, as in [`training.data.samples.load_prepared`]; `None` for converted
            weights.
        license (`str`, *optional*): The Hub's name of the model's licence. The default is Stable Diffusion's licence
            if `base_model` is one of its repositories on the Hub, else none is stated.
        num_steps (`int`, *optional*): Optimizer steps of the training, 0 for a pipeline that was only widened.
        num_samples (`int`, *optional*): Samples per step, over all processes.
        parts (`Sequence[str]`, *optional*, defaults to `("UNet", "adapter")`): The trained parts of the model.
        card: Further arguments of [`write_card`].
    """
    if license is None and find_hub_id(base_model) in STABLE_DIFFUSION:
        license = "creativeml-openrail-m"
    data_id = find_hub_id(dataset) if dataset else None
    amount = "" if num_steps is None else f"{num_steps:,} steps"
    amount += "" if num_steps is None or num_samples is None else f" of {num_samples} samples"
    *others, last = parts
    return write_card(
        output_dir,
        "base.md",
        base_model=base_model,
        license={"license": license} if license else {},
        data_id=data_id,
        measured_on={
            "dataset_type": data_id or (PROCEDURAL if dataset and is_drawn(dataset) else "local"),
            "dataset_name": data_id or name_data(dataset),
            "dataset_split": "validation",
        },
        caption="A photo, poses, and frames made from them",
        data=name_data(dataset),
        is_trained=num_steps != 0,
        amount=amount,
        parts=f"{', '.join(others)} and {last}" if others else last,
        **card,
    )


def write_run_card(
    output_dir: Path, *, dataset: str, num_steps: int, picture: str | Path | None = None, **card: Any
) -> Path:
    """Write the card of a run of stage 1 by [`write_base_card`], with the figures of its last validation.

    Without a `picture`, the card shows the last validation's strip if the training data is drawn, so that it shows no
    real person.
    """
    strip = strip_path(output_dir, num_steps)
    if picture is None and is_drawn(dataset) and strip.exists():
        picture = strip
    figures = read_figures(output_dir, num_steps, "validation/")
    return write_base_card(output_dir, dataset=dataset, num_steps=num_steps, picture=picture, figures=figures, **card)


def write_subject_card(
    output_dir: Path,
    *,
    base_model: str,
    revision: str | None = None,
    rank: int | None,
    num_photos: int | None = None,
    prior_dataset: str | None = None,
    prior_prob: float = 0.0,
    num_steps: Mapping[str, int] | None = None,
    num_samples: int | None = None,
    license: str | None = None,
    parts: Sequence[str] | None = None,
    **card: Any,
) -> Path:
    """Write the card of a subject into its folder, from `subject.md`, or from `base.md` after full training.

    Args:
        output_dir (`Path`): Folder of the subject.
        base_model, revision (`str`): Folder or Hub id of the pipeline that the subject was trained on, and its
            revision on the Hub.
        rank (`int`, *optional*): Rank of the LoRA; `None` for a pipeline whose weights were all trained.
        num_photos (`int`, *optional*): Number of training photos, if it is known.
        prior_dataset (`str`, *optional*): Prepared data set of other people that was used in training.
        prior_prob (`float`, *optional*, defaults to 0.0): Share of the samples from `prior_dataset`.
        num_steps (`Mapping[str, int]`, *optional*): Optimizer steps of the phases `denoiser` and `decoder`, without a
            skipped one.
        num_samples (`int`, *optional*): Samples per step, over all processes.
        license (`str`, *optional*): The Hub's name of the licence; the default is the licence on `base_model`'s card.
        parts (`Sequence[str]`, *optional*): The parts of the model that the LoRA changes; the default follows
            `num_steps`.
        card: Further arguments of [`write_card`].
    """
    trained = {phase: part for phase, part in PARTS.items() if phase in (num_steps or {})}
    steps = [f"{num_steps[phase]:,} step{_plural(num_steps[phase])} of {part}" for phase, part in trained.items()]
    data = f"{num_photos} photo{_plural(num_photos)} of that person"
    if prior_dataset is not None:
        data += f" ({prior_prob:.0%} of the samples: of others, from {name_data(prior_dataset)})"
    return write_card(
        output_dir,
        "base.md" if rank is None else "subject.md",
        base_model=base_model,
        revision=revision,
        license={"license": license} if license else read_license(base_model, revision),
        measured_on={"dataset_type": "local", "dataset_name": "pictures of that person"},
        data=data,
        num_photos=num_photos,
        amount=" and ".join(steps) + ("" if num_samples is None else f", of {num_samples} samples each"),
        phases=list(trained),
        parts=" and ".join(parts or trained.values()),
        rank=rank,
        **card,
    )


def write_card(
    output_dir: Path,
    template: str,
    *,
    base_model: str,
    revision: str | None = None,
    license: Mapping[str, str],
    measured_on: Mapping[str, str],
    repo_id: str | None = None,
    data_id: str | None = None,
    caption: str = "Pictures made with it",
    options_yaml: str = "",
    figures: Mapping[str, float] | None = None,
    picture: str | Path | None = None,
    conversion: str = "",
    **fields: Any,
) -> Path:
    """Fill a template with the fields that all cards have and with further `fields`.

    Args:
        output_dir (`Path`): Folder of the card, `README.md`.
        template (`str`): File name of the template in `model_card/`.
        base_model, revision (`str`): Folder or Hub id of the model that training started from, and its revision there.
        license (`Mapping[str, str]`): `license` and, if it is `other`, `license_name` and `license_link`.
        measured_on (`Mapping[str, str]`): Data that the figures were measured on, as arguments of `EvalResult`.
        repo_id (`str`, *optional*): Repository that the model will be pushed to, `OWNER/NAME`.
        data_id (`str`, *optional*): Hub id of the training data.
        caption (`str`, *optional*): Caption of the picture.
        options_yaml (`str`, *optional*): The run's options; the card shows their [`public_settings`].
        figures (`Mapping[str, float]`, *optional*): Figures by name; those that are not finite are left out.
        picture (`str` or `Path`, *optional*): Picture to copy into `output_dir` as `sample`. Everybody on it must have
            agreed; the people of UBC Fashion did not.
        conversion (`str`, *optional*): Origin of converted weights; replaces the text about the training.
        fields: Further fields of the template. A card with a `rank` is that of a LoRA.
    Returns:
        `Path`: The card.
    Raises:
        ValueError: If `repo_id` is not a valid id, or `picture` is not the file of a picture.
    """
    if repo_id is not None and not ("/" in repo_id and is_repo_id(repo_id)):
        raise ValueError(f"`repo_id` must be OWNER/NAME, got {repo_id!r}.")
    base_id, is_lora = find_hub_id(base_model), fields.get("rank") is not None
    sample = None if picture is None else _copy_sample(Path(picture), output_dir)
    title = repo_id.split("/")[1] if repo_id else "DreamPose"
    figures = {name: value for name, value in (figures or {}).items() if math.isfinite(value)}
    settings = public_settings(options_yaml)
    results = [
        EvalResult("image-to-video", metric_type=name, metric_value=round(float(value), 4), **measured_on)
        for name, value in figures.items()
    ]
    data = ModelCardData(
        **license,
        pipeline_tag="image-to-video",
        base_model=base_id,
        base_model_relation=("adapter" if is_lora else "finetune") if base_id else None,
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
        conversion=conversion,
        versions=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        settings=yaml.safe_dump(settings, sort_keys=False).strip() if settings else "",
        base_license=_name_license(license),
        **fields,
    )
    card = populate_model_card(card, tags=[*TAGS, "lora"] if is_lora else list(TAGS))
    card.text = card.text.rstrip() + "\n"
    card.save(output_dir / CARD_NAME)
    return output_dir / CARD_NAME


def try_write_card(
    write: Callable[..., Path], output_dir: str | Path, repo_id: str | None = None, **card: Any
) -> Path | None:
    """Call a function above at the end of a run; an error becomes a warning, so that it does not fail the run.

    `repo_id` is the repository that the model will be pushed to, `OWNER/NAME` or `NAME`; for the latter, the push puts
    the full id into the card. Return the card, or `None` after an error.
    """
    try:
        return write(Path(output_dir), repo_id=repo_id if repo_id and "/" in repo_id else None, **card)
    except Exception as error:  # from whatever the folder, the picture and the base model's card contain
        logger.warning(f"The card of {output_dir} could not be written: {error}")
        return None


def read_license(model: str, revision: str | None = None) -> dict[str, str]:
    """Return `license` from the card of a model, a folder or a Hub id; if it is `other`, also its name and link.

    `license_name` and `license_link` are returned if the Hub accepts their values; the name of a file in the
    repository becomes a full link. The result is empty if there is no card, or if it states several licences or none
    that the Hub accepts.
    """
    stated = _read_front_matter(model, revision)
    license, link = stated.get("license"), stated.get("license_link")
    if isinstance(license, list) and len(license) == 1:
        (license,) = license
    terms = {"license": license} if _is_match(LICENSE_NAME, license) else {}
    if license != "other":
        return terms
    if _is_match(LICENSE_NAME, stated.get("license_name")):
        terms["license_name"] = stated["license_name"]
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


def _name_license(terms: Mapping[str, str]) -> str:
    """Name a licence in the card's text; an unknown one is that of the base model."""
    license = terms.get("license")
    name = markdown_text(terms.get("license_name") or LICENSES.get(license, license) or "as stated there")
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


def _plural(number: int | None) -> str:
    return "" if number == 1 else "s"


def _table(figures: Mapping[str, float]) -> str:
    """Format figures as a Markdown table of one row; return "" without figures."""
    if not figures:
        return ""
    names = [f"{markdown_text(name.replace('_', ' '))} {ARROWS.get(name, '')}".strip() for name in figures]
    rows = [names, ["---"] * len(names), [f"{value:.4g}" for value in figures.values()]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
