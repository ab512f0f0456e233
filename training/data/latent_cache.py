# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""A latent cache: what never changes while stage 1 trains, computed once and kept in one safetensors file.

VAE encodings are half the cost of a training step at full size (two of 1.41 TFLOP beside a UNet pass of 1.04), and
frozen. Legend as in `frame_pairs`; `N` rows, `M` rows that may be a reference.
"""

import hashlib
import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor

from pipeline_dreampose import clip_pixel_values, encode_pixels
from training.data.frame_pairs import FramePairs


def latent_cache_path(
    folder: str | os.PathLike,
    pairs: FramePairs,
    vae: AutoencoderKL,
    image_size: int,
    feature_extractor: CLIPImageProcessor,
) -> Path:
    """File of a cache, named by all that it depends on: rows, sizes, both encoders' input, the VAE's weights."""
    facts = (pairs.dataset._fingerprint, pairs.shape, pairs.reference_frames, image_size)
    facts += (vae.config.scaling_factor, feature_extractor.image_mean, feature_extractor.image_std)
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return Path(folder) / f"latents-{digest.hexdigest()[:16]}.safetensors"


@torch.no_grad()
def build_latent_cache(
    path: str | os.PathLike,
    pairs: FramePairs,
    vae: AutoencoderKL,
    image_size: int,
    feature_extractor: CLIPImageProcessor,
    batch_size: int = 32,
) -> None:
    """Encode every row once and write the cache, whole or not at all: interrupted, it starts anew.

    Args:
        path (`str` or `os.PathLike`): The file to write.
        pairs (`FramePairs`): Gives the rows and their sizes.
        vae (`AutoencoderKL`): Encodes on its own device.
        image_size (`int`): Side of the image encoder's square.
        feature_extractor (`CLIPImageProcessor`): Holds CLIP's mean and standard deviation.
        batch_size (`int`, *optional*, defaults to 32): Pictures encoded at a time.
    """
    num_rows, columns = len(pairs.dataset), {"mean": [], "std": [], "pose_maps": [], "clip_squares": []}
    references = {rows[0] for rows in pairs.videos.values()} if pairs.reference_frames == "first" else range(num_rows)
    square_of_row = torch.full((num_rows,), -1, dtype=torch.int64)
    square_of_row[sorted(references)] = torch.arange(len(references))
    mean, std = (torch.tensor(v)[:, None, None] for v in (feature_extractor.image_mean, feature_extractor.image_std))
    for start in tqdm(range(0, num_rows, batch_size), desc="Latent cache", unit="batch"):
        rows = range(start, min(start + batch_size, num_rows))
        pixel_values = torch.stack([pairs.read_pixel_values(row) for row in rows])
        posterior = encode_pixels(pixel_values.to(vae.device), vae)
        columns["mean"].append(posterior.mean.half().cpu())
        columns["std"].append(posterior.std.half().cpu())
        columns["pose_maps"].append(torch.stack([pairs.read_pose_map(row) for row in rows]).mul(255).round().byte())
        chosen = [index for index, row in enumerate(rows) if square_of_row[row] >= 0]
        if chosen:
            squares = clip_pixel_values(pixel_values[chosen], image_size, feature_extractor) * std + mean
            columns["clip_squares"].append(squares.mul(255).round().byte())
    tensors = {name: torch.cat(parts) for name, parts in columns.items()} | {
        "square_of_row": square_of_row,
        "clip_mean": mean,
        "clip_std": std,
        "scaling_factor": torch.tensor(float(vae.config.scaling_factor)),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, path)


def load_latent_cache(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a cache, mapped from the file, so that processes share them.

    Returns:
        `dict`: `mean` and `std` [N,C,h,w] unscaled, `pose_maps` [N,2,h,w] and `clip_squares` [M,3,S,S] uint8,
            `square_of_row` [N] with -1 for rows that are no reference, `clip_mean`, `clip_std`, `scaling_factor`.
    """
    return load_file(path)
