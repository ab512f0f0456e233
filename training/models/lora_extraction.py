# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The difference between two sets of weights as a LoRA, by truncated singular value decomposition.

Each layer's difference is decomposed by the eigenvectors of its Gram matrix on its smaller side (at most 1280 in
Stable Diffusion), in float64: as exact as the stored float32, the best there is at its rank (Eckart and Young), the
same in every run, and one layer at a time in memory. A full SVD would compute the long side's vectors as well, only to
drop them; a randomised one (`torch.svd_lowrank`) leaves more where singular values fall slowly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from tqdm.auto import tqdm

from training.models.lora import config_metadata


@dataclass(frozen=True)
class Extraction:
    """What became of the difference of a model, or of several, which `+` counts together.

    Args:
        layers (`dict[str, torch.Tensor]`): The LoRA, by PEFT's names.
        config (`dict[str, Any]`): Its `LoraConfig`, as `DreamPosePipeline.save_lora_weights` takes it.
        squared_difference (`float`): Sum over all weights of the model.
        squared_error (`float`): Of what the LoRA leaves of it.
        num_left (`int`): Tensors that differ but cannot be carried: biases, norms.
    """

    layers: dict[str, torch.Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    squared_difference: float = 0.0
    squared_error: float = 0.0
    num_left: int = 0

    @property
    def relative_error(self) -> float:
        """Frobenius norm of what is left, over that of the whole difference; 0 where nothing differs."""
        return math.sqrt(self.squared_error / self.squared_difference) if self.squared_difference else 0.0

    def __add__(self, other: "Extraction") -> "Extraction":
        return Extraction(
            squared_difference=self.squared_difference + other.squared_difference,
            squared_error=self.squared_error + other.squared_error,
            num_left=self.num_left + other.num_left,
        )


def low_rank_factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of a matrix at a rank, as two factors that share its singular values evenly.

    Args:
        matrix (`torch.Tensor`): Shape `(m, n)`, float64.
        rank (`int`): May exceed the matrix's own sides; what is beyond them is 0.
    Returns:
        `tuple`: `(m, rank)` and `(rank, n)`, whose product it is.
    """
    if matrix.shape[0] > matrix.shape[1]:
        down, up = low_rank_factors(matrix.T, rank)
        return up.T, down.T
    num_vectors = min(rank, len(matrix))
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)  # ascending
    vectors = vectors[:, -num_vectors:].flip(1)
    projected = vectors.T @ matrix  # singular values times the other side's vectors
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
    """The LoRA that brings a model as near to other weights as its rank can: of all linear layers and convolutions
    that differ.

    Args:
        module (`nn.Module`): The model that the LoRA will be attached to.
        weights (`Mapping[str, torch.Tensor]`): The others, of the same names and shapes as its state dict.
        rank (`int`): Of every layer.
        name (`str`, *optional*): For the progress bar.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Decomposes; wants float64.
    Returns:
        `Extraction`: The LoRA on the CPU in float32, and what it leaves, measured with the stored weights.
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
        if kind != "weight" or not _can_carry(module.get_submodule(path)):
            num_left, squared_error = num_left + 1, squared_error + squared
            continue
        matrix = difference.flatten(1)
        up, down = (factor.float() for factor in low_rank_factors(matrix, rank))
        squared_error += (matrix - up.double() @ down.double()).square().sum().item()
        ones = (1,) * (own.ndim - 2)  # a convolution's second factor is one of 1x1
        layers[f"{path}.lora_A.weight"] = down.reshape(rank, *own.shape[1:]).cpu().contiguous()
        layers[f"{path}.lora_B.weight"] = up.reshape(*up.shape, *ones).cpu().contiguous()
        targets.append(path)
    config = config_metadata(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return Extraction(layers, config, squared_difference, squared_error, num_left)


def _can_carry(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
