# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Conversion of the authors' checkpoints to a pipeline, or of a subject's checkpoints to a LoRA.

The release is github.com/johannakarras/DreamPose at 5bf30b7.
"""

import inspect
import logging
import math
import re
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
from training.engine.output_lock import LOCK_NAME
from training.hub.card_writer import find_hub_id, try_write_card, write_subject_card
from training.hub.repositories import CODE_NAME, INDEX_NAME, class_name
from training.models.base_pipeline import load_base_pipeline, load_dreampose_index, load_index, naming
from training.models.lora import write_subject_file
from training.models.lora_extraction import extract_lora


logger = logging.getLogger(__name__)

ZIP_START = b"PK\x03\x04"  # of a file that torch reads as a zip
# Value ranges of pictures (black, white) or pose maps (0, 1) that the weights may have been trained with.
RANGES = {"minus_one_one": (-1.0, 1.0), "zero_one": (0.0, 1.0)}
PART_NAMES = {"unet": "UNet", "adapter": "adapter", "vae": "VAE"}  # in cards
# Settings of the command in the release's README.
SAMPLING = {
    "default_num_inference_steps": 100,
    "default_image_guidance_scale": 8.0,
    "default_pose_guidance_scale": 3.0,
}
ADAPTER_NAMES = {"vae2clip": "vae_projection", "linear1": "token_mixer"}
# Layers of the VAE's attention: name in old diffusers -> name today.
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION = re.compile(rf"(?<=\.attentions\.\d\.)({'|'.join(ATTENTION_NAMES)})(?=\.(weight|bias)$)")
ATTENTION_WEIGHT = re.compile(r"\.attentions\.\d\.to_(q|k|v|out\.0)\.weight$")


def read_checkpoint(path: Path, part: str) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors under this project's names. Only tensors are unpickled.

    Args:
        path (`Path`): A state dict that `torch.save` wrote.
        part (`str`): `"unet"`, `"adapter"` or `"vae"`.
    Returns:
        `dict[str, torch.Tensor]`: Memory-mapped if the file's format allows it.
    Raises:
        ValueError: If the file is damaged, or not a state dict of floating-point tensors. No code in it is run.
    """
    if not path.is_file():
        raise ValueError(f"`{part}` must be an existing file, got {str(path)!r}.")
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    if is_zip:
        _check_zip(path, part)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch's unpickler raises many kinds on unknown files
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it refers to {found[1]}" if found else f"reading it raises {type(error).__name__}"
        raise ValueError(
            f"`{part}` must be a state dict of tensors only, got {path.name!r}: {reason}. None of it was run."
        ) from error
    values = list(weights.values()) if isinstance(weights, dict) else []
    if not values or not all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values):
        raise ValueError(f"`{part}` must be a state dict of floating-point tensors, got {path.name!r}.")
    renamed = dict(_rename(str(name), tensor, part) for name, tensor in weights.items())
    if len(renamed) < len(weights):
        raise ValueError(f"`{part}` must hold every weight once, got {path.name!r} with some under two names.")
    if not is_zip:
        logger.warning(f"{path.name} is in torch's old format, which has no checksums: damage in it would not show.")
    return renamed


def _check_zip(path: Path, part: str) -> None:
    """Check that no entry of a zip file is compressed, and that each has the right CRC, which torch does not check."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not is_plain or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its entries must be stored uncompressed, as `torch.save` does")
            damaged = file.testzip()
    except Exception as error:  # zipfile raises many kinds on damaged files, some without a text
        reason = str(error) or type(error).__name__
    else:
        reason = damaged and f"the CRC of its entry {damaged[:80]!r} is wrong"
    if reason:
        raise ValueError(f"`{part}` must be an undamaged file of `torch.save`, got {path.name!r}: {reason}.")


def _rename(name: str, tensor: torch.Tensor, part: str) -> tuple[str, torch.Tensor]:
    """Translate the name and shape of a release's weight into this project's."""
    name = re.sub(r"^(module\.)+", "", name)
    if part == "adapter":
        layer, dot, kind = name.partition(".")
        name = ADAPTER_NAMES.get(layer, layer) + dot + kind
    if part == "vae":
        name = OLD_ATTENTION.sub(lambda found: ATTENTION_NAMES[found[0]], name)
        if ATTENTION_WEIGHT.search(name) and tensor.ndim == 4:
            tensor = tensor.flatten(1)  # a 1x1 convolution; `check_weights` refuses any other size
    return name, tensor


def check_weights(part: str, module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Check that weights have exactly a model's names and shapes and finite values, or raise a `ValueError`.

    `part` is the argument that the error names.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    common = [name for name in expected if name in shapes]
    wrong = [name for name in common if shapes[name] != expected[name]]
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "wrong shape": [f"{name} is {shapes[name]} instead of {expected[name]}" for name in wrong],
        "not finite": [name for name in common if not torch.isfinite(weights[name]).all()],
    }
    found = "; ".join(f"{fault}: {_list_some(names)}" for fault, names in faults.items() if names)
    if found:
        raise ValueError(f"`{part}` must hold the weights of this {type(module).__name__}, got {found}.")


def _list_some(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def find_pose_radius(unet_weights: Mapping[str, torch.Tensor]) -> int:
    """Find the pose window's radius from a UNet's input channels; raise a `ValueError` if it takes no poses."""
    first, last = (unet_weights.get(f"{layer}.weight") for layer in ("conv_in", "conv_out"))
    if first is None or last is None or {first.ndim, last.ndim} != {4}:
        raise ValueError(f"`unet` must hold conv_in.weight and conv_out.weight, got {_list_some(unet_weights)}.")
    num_poses, rest = divmod(first.shape[1] - last.shape[0], 2)
    if num_poses < 1 or num_poses % 2 == 0 or rest:
        raise ValueError(
            f"`unet` must have {last.shape[0]} input channels for latents and 2 for each of 1, 3, 5, ... poses, got"
            f" {first.shape[1]} in conv_in.weight."
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
    """Build a pipeline from the release's checkpoints that samples as the release does.

    Args:
        checkpoints (`Mapping[str, Path]`): Files of `unet`, `adapter` and optionally `vae`, by default `base`'s VAE.
        base (`str`): Folder or Hub id of the Stable Diffusion that they were trained from.
        image_encoder_name_or_path (`str`): Folder or Hub id of the CLIP vision model.
        image_range, pose_range (`str`): Value ranges, names in `RANGES`.
        height, width (`int`): Size of the pictures that the adapter was trained with.
        revision (`str`, *optional*): Branch, tag or commit of `base` on the Hub.
    Returns:
        `DreamPosePipeline`: In float32, on the CPU.
    Raises:
        ValueError: If a file is not a checkpoint of the release, or does not fit `base`.
    """
    weights = {part: read_checkpoint(path, part) for part, path in checkpoints.items()}
    size = (height, width, find_pose_radius(weights["unet"]))
    if load_index(base, revision, "base").get("_class_name") == "DreamPosePipeline":
        raise ValueError(f"`base` must be a Stable Diffusion 1.x, got {base!r}, which is a DreamPosePipeline.")
    pipeline = load_base_pipeline(base, *size, revision, image_encoder_name_or_path, argument="base")
    _check_size(pipeline, weights["adapter"], height, width)
    for part, tensors in weights.items():
        check_weights(part, getattr(pipeline, part), tensors)
    for part, tensors in weights.items():
        getattr(pipeline, part).load_state_dict(tensors)
    sampling = {"skip_prk_steps": True, "timestep_spacing": "leading"}
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, **sampling)
    # In the release, CLIP sees only the middle of each picture: the crop of CLIP's own processor.
    side = pipeline.image_encoder.config.image_size
    pipeline.feature_extractor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    pipeline.register_to_config(image_range=RANGES[image_range], pose_range=RANGES[pose_range], **SAMPLING)
    return pipeline


def _check_size(pipeline: DreamPosePipeline, weights: Mapping[str, torch.Tensor], height: int, width: int) -> None:
    """Refuse a picture size that does not fit the adapter; [`check_weights`] finds its other faults."""
    name = "vae_projection.weight"
    expected = tuple(pipeline.adapter.state_dict()[name].shape)
    found = tuple(weights[name].shape) if name in weights else ()
    if len(found) == 2 and found[0] == expected[0] and found[1] != expected[1]:
        raise ValueError(
            f"`height` and `width` must be those of the pictures that the `adapter` was trained with, got {height} and"
            f" {width}, which give {expected[1]} cells per channel instead of {found[1]}."
        )


def check_output_dir(output_dir: Path, is_subject: bool) -> None:
    """Raise a `ValueError` unless a folder is new, empty, or has an earlier subject or pipeline to overwrite.

    Otherwise the card could overwrite the README.md of something else.
    """
    paths = output_dir.iterdir() if output_dir.is_dir() else []
    names = sorted(path.name for path in paths if path.name != LOCK_NAME)
    if is_subject:
        is_earlier = LORA_WEIGHT_NAME_SAFE in names and INDEX_NAME not in names
    else:
        parts = {*inspect.signature(DreamPosePipeline).parameters, CODE_NAME}  # left by an interrupted run
        is_earlier = class_name(output_dir / INDEX_NAME) == "DreamPosePipeline" or parts.issuperset(names)
    if (output_dir.exists() and not output_dir.is_dir()) or (names and not is_earlier):
        kind = "subject" if is_subject else "DreamPose pipeline"
        raise ValueError(
            f"`output_dir` must be a new or empty folder, or one with a {kind} to overwrite, got"
            f" {str(output_dir)!r}, which {f'holds {_list_some(names, 3)}' if names else 'is a file'}."
        )


def describe_conversion(pipeline: DreamPosePipeline, parts: Iterable[str]) -> str:
    """Return the paragraph of a pipeline's card about the origin of its weights; `parts` have been converted."""
    *others, last = (PART_NAMES[part] for part in parts)
    images, poses = ("[{:g}, {:g}]".format(*pipeline.config[f"{kind}_range"]) for kind in ("image", "pose"))
    steps, image_scale, pose_scale = (f"{pipeline.config[name]:g}" for name in SAMPLING)
    return (
        f"{', '.join(others)} and {last} are checkpoints of the authors'"
        " [release](https://github.com/johannakarras/DreamPose), whose repository is under the MIT licence, converted"
        " by `training/convert_original_checkpoint.py`. The release does not document the value ranges of its"
        f" training. This conversion gives pictures in {images} to the VAE (`image_range`) and pose maps in {poses} to"
        " the UNet (`pose_range`). If frames are pale or dark, or do not follow the poses, try the other range."
        f" As in the release, CLIP sees a centre crop of the photo, and the defaults are PNDM with {steps} steps and"
        f" guidance scales of {image_scale} (photo) and {pose_scale} (pose)."
    )


def extract_subject(
    checkpoints: Mapping[str, Path],
    base: str,
    rank: int,
    output_dir: Path,
    revision: str | None = None,
    device: str | None = None,
) -> list[str]:
    """Write the difference between a subject's checkpoints and their base model as a LoRA, with its card.

    Args:
        checkpoints (`Mapping[str, Path]`): Files of the subject's `unet`, `adapter` and `vae`, or of some of them.
        base (`str`): Folder or Hub id of the DreamPose pipeline that the subject was trained from.
        rank (`int`): Rank of every layer.
        output_dir (`Path`): Folder for `pytorch_lora_weights.safetensors` and `README.md`.
        revision (`str`, *optional*): Branch, tag or commit of `base` on the Hub.
        device (`str`, *optional*): Device of the computation; by default CUDA if there is one, else the CPU.
    Returns:
        `list[str]`: Lines of a report: rank, size of the file, and the error that the LoRA leaves.
    Raises:
        ValueError: If a file is not a checkpoint of the release, does not fit `base` or does not differ from it.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`device` must be one that computes in float64, got {device!r}: {reason}") from error
    weights = {part: read_checkpoint(path, part) for part, path in checkpoints.items()}
    load_dreampose_index(base, revision, "subject_of")
    with naming("subject_of", base):
        pipeline = DreamPosePipeline.from_pretrained(base, revision=revision, dtype=torch.float32)
    for part, tensors in weights.items():
        check_weights(part, getattr(pipeline, part), tensors)
    found = {}
    for part, tensors in weights.items():
        extraction = extract_lora(getattr(pipeline, part), tensors, rank, part, device)
        if extraction.squared_difference > 0:
            found[part] = extraction
    carried = {part: extraction for part, extraction in found.items() if extraction.layers}
    if not carried:
        raise ValueError(
            f"`{'`, `'.join(checkpoints)}` must differ from `subject_of` in a linear layer or convolution, got none"
            f" that differs from {base!r}."
        )
    layers = {f"{part}_lora_layers": extraction.layers for part, extraction in carried.items()}
    layers |= {f"{part}_lora_adapter_metadata": extraction.config for part, extraction in carried.items()}
    facts = {"base_model": find_hub_id(base), "revision": revision, "rank": rank, "lora_alpha": rank}
    for part, extraction in found.items():
        facts |= {f"{part}_relative_error": extraction.relative_error, f"{part}_num_left": extraction.num_left}
    whole = sum(extraction.squared_difference for extraction in found.values())
    facts["relative_error"] = math.sqrt(sum(extraction.squared_error for extraction in found.values()) / whole)
    facts["num_weight_bytes"] = sum(layer.nbytes for part in found.values() for layer in part.layers.values())
    path = write_subject_file(output_dir, layers, facts)
    card = {"parts": [PART_NAMES[part] for part in carried], "conversion": describe_extraction(facts)}
    try_write_card(write_subject_card, output_dir, base_model=base, revision=revision, rank=rank, **card)
    report = [
        f"{part}: rank {rank} in {len(extraction.layers) // 2} layers leaves {extraction.relative_error:.2%} of the"
        f" difference, including {extraction.num_left} biases and norms"
        for part, extraction in found.items()
    ]
    return [*report, f"all: {facts['relative_error']:.2%} left; {path} has {path.stat().st_size / 1e6:.2f} MB"]


def describe_extraction(facts: Mapping[str, Any]) -> str:
    """Return the paragraph of a subject's card about its extraction, from the metadata of its file."""
    num_left = sum(value for name, value in facts.items() if name.endswith("_num_left"))
    return (
        "This LoRA approximates the difference between a subject's checkpoints, in the format of the authors'"
        " [release](https://github.com/johannakarras/DreamPose), and the model above. Each layer is the best"
        f" approximation of rank {facts['rank']}: a truncated singular value decomposition by"
        f" `training/convert_original_checkpoint.py`. It leaves {facts['relative_error']:.2%} of the difference"
        f" (Frobenius norm), including that of {num_left} biases and norms, which a LoRA cannot change. How the"
        " checkpoints were trained is not known."
    )
