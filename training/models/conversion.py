# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The checkpoints of the authors' release (github.com/johannakarras/DreamPose at 5bf30b7) as a pipeline, or those of a
subject as a LoRA on one.
"""

import inspect
import re
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import nn
from transformers import CLIPImageProcessor

from pipeline_dreampose import DreamPosePipeline
from training.hub.model_card import find_hub_id, try_write_card
from training.hub.repositories import CODE_NAME, INDEX_NAME, class_name
from training.hub.subject_card import write_subject_card
from training.models.base_pipeline import is_dreampose, load_base_pipeline, load_dreampose_index, load_index
from training.models.lora import write_subject_file
from training.models.lora_extraction import Extraction, extract_lora


# What black and white of pictures, 0 and 1 of pose maps, may have been to the weights.
RANGES = {"minus_one_one": (-1.0, 1.0), "zero_one": (0.0, 1.0)}
PART_NAMES = {"unet": "UNet", "adapter": "adapter", "vae": "VAE"}  # as cards have them
# How the release is called by its own README.
SAMPLING = {
    "default_num_inference_steps": 100,
    "default_image_guidance_scale": 8.0,
    "default_pose_guidance_scale": 3.0,
}
ADAPTER_NAMES = {"vae2clip": "vae_projection", "linear1": "token_mixer"}
# Of the VAE's attention, in the diffusers of then and of now.
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION = re.compile(rf"(?<=\.attentions\.\d\.)({'|'.join(ATTENTION_NAMES)})(?=\.(weight|bias)$)")
ATTENTION_WEIGHT = re.compile(r"\.attentions\.\d\.to_(q|k|v|out\.0)\.weight$")


def read_checkpoint(path: Path, part: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by this project's names; nothing but tensors is unpickled.

    Args:
        path (`Path`): A state dict that `torch.save` wrote.
        part (`str`): `"unet"`, `"adapter"` or `"vae"`.
    Returns:
        `dict[str, torch.Tensor]`: Mapped from the file where its format allows, so not read before it is used.
    Raises:
        ValueError: If the file is no such dict, or holds anything else; nothing of it is run.
    """
    if not path.is_file():
        raise ValueError(f"`{part}` must be a file, got {str(path)!r}, which is none.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch's unpickler meets in a file of unknown origin
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {found[1]}" if found else f"reading it ends in {type(error).__name__}"
        raise ValueError(
            f"`{part}` must be a state dict of tensors alone, got {path.name!r}: {reason}. Nothing of it was run."
        ) from error
    is_tensor = lambda value: isinstance(value, torch.Tensor) and value.is_floating_point()  # noqa: E731
    if not isinstance(weights, dict) or not weights or not all(map(is_tensor, weights.values())):
        raise ValueError(f"`{part}` must be a state dict of floating-point tensors, got {path.name!r}, which is none.")
    renamed = dict(_rename(str(name), tensor, part) for name, tensor in weights.items())
    if len(renamed) < len(weights):
        raise ValueError(f"`{part}` must hold every weight once, got {path.name!r}, which holds some by two names.")
    return renamed


def _rename(name: str, tensor: torch.Tensor, part: str) -> tuple[str, torch.Tensor]:
    """A weight of the release by its name here, in its shape here."""
    name = re.sub(r"^(module\.)+", "", name)
    if part == "adapter":
        layer, dot, kind = name.partition(".")
        name = ADAPTER_NAMES.get(layer, layer) + dot + kind
    if part == "vae":
        name = OLD_ATTENTION.sub(lambda found: ATTENTION_NAMES[found[0]], name)
        if ATTENTION_WEIGHT.search(name) and tensor.ndim == 4:
            tensor = tensor.flatten(1)  # a 1x1 convolution; of any other size, its shape is found to be wrong
    return name, tensor


def check_weights(part: str, module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not exactly those of a model.

    Args:
        part (`str`): The argument that named them.
        module (`nn.Module`): The model.
        weights (`Mapping[str, torch.Tensor]`): From [`read_checkpoint`].
    Raises:
        ValueError: Names what is missing, what is too much, wrong shapes, and what is not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    common = [name for name in expected if name in shapes]
    wrong = [name for name in common if shapes[name] != expected[name]]
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "too much": [name for name in shapes if name not in expected],
        "of another shape": [f"{name} of {shapes[name]} for {expected[name]}" for name in wrong],
        "not finite": [name for name in common if not torch.isfinite(weights[name]).all()],
    }
    found = "; ".join(f"{fault}: {_list_some(names)}" for fault, names in faults.items() if names)
    if found:
        raise ValueError(f"`{part}` must hold the weights of this {type(module).__name__}, got {found}.")


def _list_some(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def find_pose_radius(unet_weights: Mapping[str, torch.Tensor]) -> int:
    """Frames of the pose window on each side of its centre, as the UNet's first layer tells.

    Args:
        unet_weights (`Mapping[str, torch.Tensor]`): From [`read_checkpoint`].
    Raises:
        ValueError: If they are of no UNet that takes poses.
    """
    first, last = (unet_weights.get(f"{layer}.weight") for layer in ("conv_in", "conv_out"))
    if first is None or last is None or {first.ndim, last.ndim} != {4}:
        raise ValueError(f"`unet` must hold conv_in.weight and conv_out.weight, got {_list_some(unet_weights)}.")
    num_poses, rest = divmod(first.shape[1] - last.shape[0], 2)
    if num_poses < 1 or num_poses % 2 == 0 or rest:
        raise ValueError(
            f"`unet` must take {last.shape[0]} channels and 2 of each of 1, 3, 5, ... poses, got conv_in.weight for"
            f" {first.shape[1]}."
        )
    return num_poses // 2


def convert_checkpoints(
    checkpoints: Mapping[str, Path],
    base: str,
    image_encoder_name_or_path: str,
    image_range: str,
    pose_range: str,
    height: int,
    width: int,
    revision: str | None = None,
) -> DreamPosePipeline:
    """The pipeline that the release's checkpoints make, to be sampled as the release does.

    Args:
        checkpoints (`Mapping[str, Path]`): Of `unet`, `adapter` and, unless it is that of `base`, `vae`.
        base (`str`): Folder or Hub id of the Stable Diffusion that they were trained from; gives all else.
        image_encoder_name_or_path (`str`): Folder or Hub id of the CLIP vision model.
        image_range, pose_range (`str`): A name in `RANGES`; they become the pipeline's.
        height, width (`int`): Of the pictures that the adapter was trained with.
        revision (`str`, *optional*): Branch, tag or commit of `base` on the Hub.
    Returns:
        `DreamPosePipeline`: In float32, on the CPU.
    Raises:
        ValueError: If a checkpoint is none, or does not fit `base`.
    """
    weights = {part: read_checkpoint(path, part) for part, path in checkpoints.items()}
    size = (height, width, find_pose_radius(weights["unet"]))
    try:
        if is_dreampose(load_index(base, revision)):
            raise ValueError(
                f"`base` must be a Stable Diffusion 1.x, got {base!r}, which is a DreamPosePipeline already."
            )
        pipeline = load_base_pipeline(base, *size, revision, image_encoder_name_or_path)
    except ValueError as error:
        raise _renamed_error(error, "base") from error
    _check_size(pipeline, weights["adapter"], height, width)
    for part, tensors in weights.items():
        check_weights(part, getattr(pipeline, part), tensors)
    for part, tensors in weights.items():
        getattr(pipeline, part).load_state_dict(tensors)
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    # The release's CLIP saw the middle of each picture only, as CLIP's own processor crops it.
    side = pipeline.image_encoder.config.image_size
    pipeline.feature_extractor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    pipeline.register_to_config(image_range=RANGES[image_range], pose_range=RANGES[pose_range], **SAMPLING)
    return pipeline


def _check_size(pipeline: DreamPosePipeline, weights: Mapping[str, torch.Tensor], height: int, width: int) -> None:
    """Refuse a size that is not that of the adapter's pictures; whatever else is wrong with it is found later."""
    name = "vae_projection.weight"
    expected = tuple(pipeline.adapter.state_dict()[name].shape)
    found = tuple(weights[name].shape) if name in weights else ()
    if len(found) == 2 and found[0] == expected[0] and found[1] != expected[1]:
        raise ValueError(
            f"`height` and `width` must be those of the pictures that the `adapter` was trained with, got {height} and"
            f" {width}, which make {expected[1]} cells of a channel, where it takes {found[1]}."
        )


def check_output_dir(output_dir: Path, is_subject: bool) -> None:
    """Refuse to write among files of something else, such as over its README.md.

    Args:
        output_dir (`Path`): Where a pipeline or subject is to go.
        is_subject (`bool`): Which of the two.
    Raises:
        ValueError: If it is neither new nor empty nor holds one of an earlier time.
    """
    names = sorted(path.name for path in output_dir.iterdir()) if output_dir.is_dir() else []
    if is_subject:
        is_earlier = LORA_WEIGHT_NAME_SAFE in names and INDEX_NAME not in names
    else:
        parts = {*inspect.signature(DreamPosePipeline).parameters, CODE_NAME}  # of a run that was stopped
        is_earlier = class_name(output_dir / INDEX_NAME) == "DreamPosePipeline" or parts.issuperset(names)
    if (output_dir.exists() and not output_dir.is_dir()) or (names and not is_earlier):
        kind = "subject" if is_subject else "DreamPose pipeline"
        raise ValueError(
            f"`output_dir` must be a new or empty folder, or that of a {kind} to be written over, got"
            f" {str(output_dir)!r}, which {f'holds {_list_some(names, 3)}' if names else 'is a file'}."
        )


def describe_conversion(pipeline: DreamPosePipeline, parts: Iterable[str]) -> str:
    """What the card of converted weights says of where they came from.

    Args:
        pipeline (`DreamPosePipeline`): From [`convert_checkpoints`].
        parts (`Iterable[str]`): Those with a checkpoint of the release's.
    """
    *others, last = (PART_NAMES[part] for part in parts)
    images, poses = ("[{:g}, {:g}]".format(*pipeline.config[f"{kind}_range"]) for kind in ("image", "pose"))
    steps, image_scale, pose_scale = (f"{pipeline.config[name]:g}" for name in SAMPLING)
    text = (
        f"{', '.join(others)} and {last} are checkpoints of the authors'"
        " [release](https://github.com/johannakarras/DreamPose), whose repository is under the MIT licence, converted"
        " by `training/convert_original_checkpoint.py`. Which ranges of values they were trained with is not"
        f" documented. Chosen here: pictures are {images} to the VAE (`image_range`), pose maps {poses} to the UNet"
        " (`pose_range`). If frames come out pale or dark, or do not follow the poses, the other choice may be right."
        f" As in the release, CLIP sees a centre crop of the photo, and the defaults are PNDM with {steps} steps and"
        f" guidance scales of {image_scale} (photo) and {pose_scale} (pose)."
    )
    return _fill(text)


def _fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def extract_subject(
    checkpoints: Mapping[str, Path],
    base: str,
    rank: int,
    output_dir: Path,
    revision: str | None = None,
    device: str | None = None,
) -> list[str]:
    """Write what a subject's checkpoints differ by from a model as a LoRA on it, by [`extract_lora`].

    Args:
        checkpoints (`Mapping[str, Path]`): Of the subject's `unet`, `adapter` and `vae`, or of some of them.
        base (`str`): Folder or Hub id of the DreamPose pipeline that the subject was trained from.
        rank (`int`): Of every layer.
        output_dir (`Path`): Folder for `pytorch_lora_weights.safetensors` and its card.
        revision (`str`, *optional*): Branch, tag or commit of `base` on the Hub.
        device (`str`, *optional*): Decomposes the weights; CUDA's if there is one, else the CPU.
    Returns:
        `list[str]`: A report in lines: rank, size of the file, and what of the difference the LoRA leaves.
    Raises:
        ValueError: If a checkpoint is none, does not fit `base` or does not differ from it.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"`device` must be one that computes in float64, got {device!r}: {_one_line(error)}"
        ) from error
    weights = {part: read_checkpoint(path, part) for part, path in checkpoints.items()}
    pipeline = _load_subject_of(base, revision)
    for part, tensors in weights.items():
        check_weights(part, getattr(pipeline, part), tensors)
    found = {}
    for part, tensors in weights.items():
        extraction = extract_lora(getattr(pipeline, part), tensors, rank, part, device)
        if extraction.squared_difference > 0:
            found[part] = extraction
    if not any(extraction.layers for extraction in found.values()):
        raise ValueError(
            f"`{'`, `'.join(checkpoints)}` must differ from `subject_of` in a linear layer or convolution, got none"
            f" that differs from {base!r}."
        )
    arguments = {}
    for part, extraction in found.items():
        if extraction.layers:
            arguments[f"{part}_lora_layers"] = extraction.layers
            arguments[f"{part}_lora_adapter_metadata"] = extraction.config
    facts = {"base_model": find_hub_id(base), "revision": revision, **_subject_facts(found, rank)}
    path = write_subject_file(output_dir, arguments, facts)
    names = [PART_NAMES[part] for part, extraction in found.items() if extraction.layers]
    how = {"parts": names, "conversion": describe_extraction(facts), "revision": revision, "rank": rank}
    try_write_card(write_subject_card, Path(output_dir), base_model=base, **how)
    return _report(found, facts, path)


def _load_subject_of(base: str, revision: str | None) -> DreamPosePipeline:
    try:
        load_dreampose_index(base, revision)
    except ValueError as error:
        raise _renamed_error(error, "subject_of") from error
    try:
        return DreamPosePipeline.from_pretrained(base, revision=revision, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"`subject_of` must be a DreamPose pipeline's folder or Hub id, got {base!r}: {_one_line(error)}"
        ) from error


def describe_extraction(facts: Mapping[str, Any]) -> str:
    """What the card of an extracted subject says of where it came from.

    Args:
        facts (`Mapping[str, Any]`): Those that its file holds.
    """
    num_left = sum(value for name, value in facts.items() if name.endswith("_num_left"))
    text = (
        "A subject's checkpoints, as the authors' [release](https://github.com/johannakarras/DreamPose) writes them,"
        " differ from the model above. Of the difference, each layer holds the best approximation of rank"
        f" {facts['rank']}, a truncated singular value decomposition by"
        f" `training/convert_original_checkpoint.py`. It leaves {facts['relative_error']:.2%} of the difference"
        f" (Frobenius norm), among it that of {num_left} biases and norms, which no LoRA carries. How the checkpoints"
        " were trained is not known here."
    )
    return _fill(text)


def _subject_facts(found: Mapping[str, Extraction], rank: int) -> dict[str, Any]:
    """What the file itself says of how it was made; its own size is that of the weights and a short header."""
    total = sum(found.values(), Extraction())
    errors = {f"{part}_relative_error": extraction.relative_error for part, extraction in found.items()}
    left = {f"{part}_num_left": extraction.num_left for part, extraction in found.items()}
    num_bytes = sum(layer.nbytes for extraction in found.values() for layer in extraction.layers.values())
    return {
        "rank": rank,
        "lora_alpha": rank,
        "relative_error": total.relative_error,
        **errors,
        **left,
        "num_weight_bytes": num_bytes,
    }


def _report(found: Mapping[str, Extraction], facts: Mapping[str, Any], path: Path) -> list[str]:
    lines = [
        f"{part}: rank {facts['rank']} in {len(extraction.layers) // 2} layers leaves"
        f" {extraction.relative_error:.2%} of the difference, among it that of {extraction.num_left} biases and norms"
        for part, extraction in found.items()
    ]
    return [*lines, f"all: {facts['relative_error']:.2%} left; {path} has {path.stat().st_size / 1e6:.2f} MB"]


def _renamed_error(error: ValueError, argument: str) -> ValueError:
    """An error of `training.models.denoiser`'s loaders by the argument that named the pipeline here."""
    return ValueError(_one_line(error).replace("`pretrained_model_name_or_path`", f"`{argument}`", 1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
