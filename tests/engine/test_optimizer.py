"""The trainers' optimizer: AdamW, its 8-bit form or Muon, and saving and restoring its state."""

import pytest
import torch
from torch import nn

from training.engine import devices
from training.engine.muon import Muon
from training.engine.optimizer import build_optimizer, flatten_optimizer_state, restore_optimizer_state


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = nn.Conv2d(2, 4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def trained_parameters(module):
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def test_one_group_of_adamw_with_the_given_settings():
    optimizer = build_optimizer(Module().parameters(), 0.1, (0.8, 0.9), 0.05, 1e-6)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW) and not group["fused"]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.1, (0.8, 0.9), 0.05, 1e-6)


@pytest.mark.parametrize("is_installed", [True, False])
def test_8_bit_needs_cuda_and_bitsandbytes(monkeypatch, is_installed):
    monkeypatch.setattr(devices, "is_bnb_available", lambda: is_installed)
    found = "is" if is_installed else "is not"
    with pytest.raises(ValueError, match=rf"`use_8bit_adam` must go with CUDA .*, got cpu; .* {found} installed"):
        build_optimizer(Module().parameters(), 0.1, use_8bit_adam=True)


@pytest.mark.parametrize(
    "name, use_8bit_adam, message",
    [
        ("mun", False, "`optimizer` must be one of adamw, muon, got 'mun'"),
        ("muon", True, "`optimizer` must be adamw with `use_8bit_adam`, got muon"),
        ("muon", False, "`optimizer` must be adamw where no trained weight has 32 rows and columns .*, got muon"),
    ],
)
def test_what_would_be_no_muon_is_refused(name, use_8bit_adam, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(Module().parameters(), 0.1, use_8bit_adam=use_8bit_adam, optimizer_name=name)


def test_muon_takes_the_same_settings():
    optimizer = build_optimizer(nn.Linear(32, 32).parameters(), 0.1, (0.8, 0.9), 0.05, 1e-6, optimizer_name="muon")
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, Muon) and not group["fused"]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.1, (0.8, 0.9), 0.05, 1e-6)


def test_state_goes_there_and_back():
    module = Module().to(memory_format=torch.channels_last)
    parameters = trained_parameters(module)
    optimizer = build_optimizer(parameters.values(), 0.1)
    assert flatten_optimizer_state(optimizer, parameters) == {}
    (module.trained.weight.square().sum() + module.scale.square()).backward()
    optimizer.step()
    flat = {name: value.contiguous() for name, value in flatten_optimizer_state(optimizer, parameters).items()}
    assert {"step/scale", "exp_avg/scale", "exp_avg_sq/trained.weight"} <= set(flat)
    again = build_optimizer(parameters.values(), 0.1)
    restore_optimizer_state(again, parameters, flat)
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            assert torch.equal(again.state[parameter][key], value)
            assert again.state[parameter][key].stride() == value.stride()
    with pytest.raises(ValueError, match="got frozen or unknown `frozen.weight`"):
        restore_optimizer_state(again, parameters, {"exp_avg/frozen.weight": torch.zeros(2, 2)})
    optimizer.state[module.scale]["step"] = "one"
    with pytest.raises(TypeError, match="`optimizer` must keep tensors only, got str for `step`"):
        flatten_optimizer_state(optimizer, parameters)


def test_a_state_of_codes_tables_and_counts_goes_there_and_back():
    """bitsandbytes keeps codes of the weights' shape, tables of other shapes, and the step count as an int."""
    parameters = trained_parameters(Module())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    state = {"state1": torch.arange(72, dtype=torch.uint8).view(4, 2, 3, 3), "qmap1": torch.rand(256), "step": 7}
    optimizer.state[parameters["trained.weight"]] = state
    flat = flatten_optimizer_state(optimizer, parameters)
    assert all(isinstance(value, torch.Tensor) for value in flat.values()), "safetensors holds only tensors"
    again = torch.optim.SGD(parameters.values(), lr=0.1)
    restore_optimizer_state(again, parameters, flat)
    restored = again.state[parameters["trained.weight"]]
    assert restored.keys() == state.keys() and restored["step"] == 7 and type(restored["step"]) is int
    assert all(torch.equal(restored[key], state[key]) for key in ("state1", "qmap1"))
    assert restored["state1"].dtype == torch.uint8
