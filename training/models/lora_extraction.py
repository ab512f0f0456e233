# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Extraction of a LoRA from the difference between two sets of weights, by truncated singular value decomposition.

Each layer's difference is decomposed in float64 by the eigenvectors of the Gram matrix of its smaller side (at most
1280 in Stable Diffusion). The result is as exact as the stored float32, optimal for its rank (Eckart and Young) and
the same in every run; memory holds one layer at a time. A full SVD would also compute the vectors of the long side,
which are not needed. A randomised SVD (`torch.svd_lowrank`) leaves a larger error where singular values fall slowly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from tqdm.auto import tqdm

from training.models.lora import config_metadata


@dataclass(frozen=True)
class Extraction:
    """LoRA of a model and the error it leaves.

    Args:
        layers (`dict[str, torch.Tensor]`): LoRA weights by PEFT's names.
        config (`dict[str, Any]`): Metadata of the `LoraConfig`, for `DreamPosePipeline.save_lora_weights`.
        squared_difference (`float`): Squared Frobenius norm of the difference of all weights.
        squared_error (`float`): Squared Frobenius norm of what the LoRA leaves of the difference.
        num_left (`int`): Number of tensors that differ but have no LoRA: biases, norms.
    """

    layers: dict[str, torch.Tensor]
    config: dict[str, Any]
    squared_difference: float
    squared_error: float
    num_left: int

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the error relative to that of the difference; 0 if nothing differs."""
        return math.sqrt(self.squared_error / self.squared_difference) if self.squared_difference else 0.0


def low_rank_factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factorize the best approximation of a matrix at a rank; each factor has the roots of the singular values.

    Args:
        matrix (`torch.Tensor`): Shape `(m, n)`, float64.
        rank (`int`): If it exceeds `m` or `n`, the factors are padded with 0.
    Returns:
        `tuple`: Factors of shape `(m, rank)` and `(rank, n)`.
    """
    if matrix.shape[0] > matrix.shape[1]:
        down, up = low_rank_factors(matrix.T, rank)
        return up.T, down.T
    num_vectors = min(rank, len(matrix))
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)  # ascending
    vectors = vectors[:, -num_vectors:].flip(1)
    projected = vectors.T @ matrix  # singular values times right singular vectors
    root = projected.norm(dim=1).sqrt()
    up = vectors * root
    down = projected / root.clamp_min(torch.finfo(root.dtype).tiny)[:, None]
    padding = rank - num_vectors
    return nn.functional.pad(up, (0, padding)), nn.functional.pad(down, (0, 0, 0, padding))


@torch.no_grad()
def extract_lora(
    module: nn.Module,
    weights: Mapping[str, torch.Tensor],
    rank: int,
    name: str = "",
    device: str | torch.device = "cpu",
) -> Extraction:
    """Compute the LoRA that brings a model closest to other weights, on each linear layer or convolution that differs.

    Args:
        module (`nn.Module`): The model that the LoRA will be attached to.
        weights (`Mapping[str, torch.Tensor]`): The other weights, with names and shapes of the model's state dict.
        rank (`int`): Rank of every layer.
        name (`str`, *optional*): Label of the progress bar.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Computes in float64.
    Returns:
        `Extraction`: The LoRA in float32 on the CPU, and its error as stored.
    """
    layers, targets, num_left = {}, [], 0
    squared_difference = squared_error = 0.0
    for key, own in tqdm(module.state_dict().items(), desc=name):
        difference = weights[key].to(device, torch.float64) - own.to(device, torch.float64)
        squared = difference.square().sum().item()
        squared_difference += squared
        path, _, kind = key.rpartition(".")
        if squared == 0:
            continue
        layer = module.get_submodule(path)
        has_matrix = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if kind != "weight" or not has_matrix:
            num_left, squared_error = num_left + 1, squared_error + squared
            continue
        matrix = difference.flatten(1)
        up, down = (factor.float() for factor in low_rank_factors(matrix, rank))
        squared_error += (matrix - up.double() @ down.double()).square().sum().item()
        ones = (1,) * (own.ndim - 2)  # a convolution's second factor is a 1x1 convolution
        layers[f"{path}.lora_A.weight"] = down.reshape(rank, *own.shape[1:]).cpu().contiguous()
        layers[f"{path}.lora_B.weight"] = up.reshape(*up.shape, *ones).cpu().contiguous()
        targets.append(path)
    config = config_metadata(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return Extraction(layers, config, squared_difference, squared_error, num_left)
