"""A run between two steps: what stays of a checkpoint that it went back to."""

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training.checkpoints import checkpoint_name
from training.optimizer import build_optimizer
from training.run_state import RunState


def step_once():
    """The state of a run of one step."""
    torch.manual_seed(0)
    module = nn.Linear(64, 64)
    optimizer = build_optimizer(module.parameters(), 0.1)
    state = RunState(Accelerator(cpu=True), module, optimizer, ema_decay=0.9)
    module(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    state.global_step = 1
    return state


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux tells what is mapped")
def test_nothing_of_a_loaded_checkpoint_stays_mapped(tmp_path):
    """Or its space would not be free once it is rotated away, as long as the run lasts."""
    saved = step_once()
    saved.save(tmp_path, None, {})
    loaded = step_once()
    loaded.load(tmp_path / checkpoint_name(1))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert not mapped
    for parameter, entries in saved.optimizer.state.items():
        (own,) = (other for other in loaded.trained.values() if other.shape == parameter.shape)
        assert all(torch.equal(loaded.optimizer.state[own][key], value) for key, value in entries.items())
