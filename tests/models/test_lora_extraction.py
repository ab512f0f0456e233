"""Extraction of a LoRA: optimal factors, and layers that have none."""

import pytest
import torch
from torch import nn

from training.models.lora_extraction import extract_lora, low_rank_factors


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factors_are_the_best_of_their_rank(shape, rank):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    up, down = low_rank_factors(matrix, rank)
    assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = u[:, :rank] * s[:rank] @ v[:rank]
    torch.testing.assert_close(up @ down, best, atol=1e-10, rtol=0)
    torch.testing.assert_close(up.norm(dim=0)[: len(s)], s[:rank].sqrt(), atol=1e-10, rtol=0)
    torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0), atol=1e-10, rtol=0)


def test_a_grouped_convolution_is_left_and_no_difference_has_no_lora():
    module = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Linear(4, 3))
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    same = extract_lora(module, weights, rank=1)
    assert same.layers == {} and same.relative_error == same.num_left == 0
    weights["0.weight"][0, 0] += 3.0
    weights["1.weight"][0, 0] += 4.0
    mixed = extract_lora(module, weights, rank=1)
    assert list(mixed.layers) == ["1.lora_A.weight", "1.lora_B.weight"] and mixed.num_left == 1
    # The difference is (3, 4), with norm 5; the LoRA leaves the 3.
    assert mixed.relative_error == pytest.approx(3 / 5, rel=1e-6)
