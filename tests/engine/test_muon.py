"""Muon: orthogonal steps for matrices, AdamW steps for the rest."""

import copy
import math

import pytest
import torch
from torch import nn

from training.engine.muon import Muon, is_matrix, orthogonalize


SETTINGS = {"lr": 1e-2, "betas": (0.95, 0.99), "weight_decay": 0.0, "eps": 1e-8}


def draw_matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(32, 200), (200, 32), (48, 64)])
def test_all_singular_values_come_near_one_and_the_singular_vectors_stay(shape):
    left, values, right = torch.linalg.svd(draw_matrix(*shape), full_matrices=False)
    values = torch.logspace(0, -2, len(values))  # the largest a hundred times the smallest
    found = left.T @ orthogonalize(left @ values.diag() @ right) @ right.T
    assert 0.65 < found.diagonal().min() and found.diagonal().max() < 1.25
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


def test_a_polynomial_worked_out_by_hand():
    """A singular value of 1 after scaling goes five times through x -> 3.4445 x - 4.775 x^3 + 2.0315 x^5."""
    x = 1.0
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    column, row = torch.zeros(3, 1), torch.zeros(1, 5)
    column[1], row[0, 2] = -2.0, 30.0
    expected = torch.zeros(3, 5)
    expected[1, 2] = -x
    assert torch.allclose(orthogonalize(column @ row), expected, atol=1e-5)


def test_scale_does_not_matter_and_transposition_commutes():
    matrix = draw_matrix(40, 90)
    assert torch.allclose(orthogonalize(1e-4 * matrix), orthogonalize(matrix), atol=1e-5)
    assert torch.allclose(orthogonalize(matrix.T), orthogonalize(matrix).T, atol=1e-6)
    assert torch.equal(orthogonalize(torch.zeros(40, 90)), torch.zeros(40, 90))


def module_with_gradients(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(64, 40, 3), nn.Linear(40, 48), nn.Linear(48, 2)).to(memory_format=memory_format)
    for value in module.parameters():
        value.grad = torch.randn(value.shape)
    return module


def test_matrices_are_what_has_two_wide_sides():
    matrices = [name for name, value in module_with_gradients().named_parameters() if is_matrix(value)]
    assert matrices == ["0.weight", "1.weight"]


def test_a_step_s_root_mean_square_is_about_the_learning_rate():
    module = module_with_gradients()
    before = [value.detach().clone() for value in module.parameters()]
    Muon(module.parameters(), **SETTINGS).step()
    for value, old in zip(module.parameters(), before, strict=True):
        assert 0.65 < (value - old).square().mean().sqrt().item() / SETTINGS["lr"] < 1.25


def test_what_is_no_matrix_moves_as_by_adamw():
    by_muon, by_adamw = module_with_gradients(), module_with_gradients()
    optimizers = Muon(by_muon.parameters(), **SETTINGS), torch.optim.AdamW(by_adamw.parameters(), **SETTINGS)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    others = dict(by_adamw.named_parameters())
    for name, value in by_muon.named_parameters():
        assert torch.equal(value, others[name]) is not is_matrix(value), name
        assert torch.equal(value.grad, others[name].grad), "gradients are left as they were"


def test_momentum_and_decay_are_those_of_the_formula():
    weight, gradients = nn.Parameter(draw_matrix(32, 50)), [draw_matrix(32, 50, seed) for seed in (1, 2)]
    expected, mean = weight.detach().clone(), torch.zeros(32, 50)
    optimizer = Muon([weight], **SETTINGS | {"weight_decay": 0.5})
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.95 * mean + 0.05 * gradient
        ahead = 0.95 * mean + 0.05 * gradient
        expected = (1 - 1e-2 * 0.5) * expected - 1e-2 * math.sqrt(50) * orthogonalize(ahead)
    assert torch.allclose(weight, expected, atol=1e-6)
    assert torch.allclose(optimizer.state[weight]["momentum"], mean) and optimizer.state[weight]["step"] == 2


def test_the_memory_layout_changes_nothing():
    plain, last = module_with_gradients(), module_with_gradients(torch.channels_last)
    for module in (plain, last):
        Muon(module.parameters(), **SETTINGS).step()
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_its_state_can_be_loaded_and_copied():
    module = module_with_gradients()
    optimizer = Muon(module.parameters(), **SETTINGS)
    optimizer.step()
    again = Muon(module.parameters(), **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer).state_dict())
    for value in module.parameters():
        for key, entry in optimizer.state[value].items():
            assert torch.equal(again.state[value][key], entry)


def test_reduced_precision_does_not_spoil_what_is_badly_conditioned():
    """bfloat16 is coarser than TensorFloat-32. Iterating only on the Gram matrix would be cheaper but fail here."""
    left, _, right = torch.linalg.svd(draw_matrix(64, 90), full_matrices=False)
    matrix = left @ torch.arange(1.0, 65).pow(-2).diag() @ right
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = orthogonalize(matrix)
    assert (found.float() - orthogonalize(matrix)).norm() < 0.25 * found.float().norm()


def test_a_closure_is_called_once_with_gradients():
    weight = nn.Parameter(draw_matrix(32, 32))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    expected = weight.square().sum().item()
    assert Muon([weight], **SETTINGS).step(closure).item() == pytest.approx(expected)
    assert weight.square().sum() < expected
