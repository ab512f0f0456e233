"""State of a run: loading a checkpoint leaves none of its files mapped."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training.engine.checkpoints import checkpoint_name
from training.engine.optimizer import build_optimizer
from training.engine.run_state import RunState


def step_once(seed):
    """Return the state of a run after one step."""
    torch.manual_seed(seed)
    module = nn.Linear(64, 64)
    optimizer = build_optimizer(module.parameters(), 0.1)
    state = RunState(Accelerator(cpu=True), module, optimizer, ema_decay=0.9)
    module(torch.randn(1, 64)).sum().backward()
    optimizer.step()
    state.global_step = 1
    return state


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux lists mapped files")
def test_nothing_of_a_loaded_checkpoint_stays_mapped(tmp_path):
    """A mapped file would keep its disk space until the run ends, even after the checkpoint is deleted."""
    saved = step_once(0)
    saved.save(tmp_path, None, {})
    loaded = step_once(1)
    before = [entries["exp_avg"].clone() for entries in loaded.optimizer.state.values()]
    assert not torch.equal(before[0], saved.optimizer.state[saved.trained["weight"]]["exp_avg"])
    loaded.load(tmp_path / checkpoint_name(1))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert not mapped
    for name, parameter in saved.trained.items():
        own = loaded.optimizer.state[loaded.trained[name]]
        assert all(torch.equal(own[key], value) for key, value in saved.optimizer.state[parameter].items())


@pytest.mark.parametrize("name", ["num_samples", "num_skipped_steps", "world", "ema_optimization_step"])
def test_a_checkpoint_without_a_key_names_it(tmp_path, name):
    saved = step_once(0)
    saved.save(tmp_path, None, {})
    path = tmp_path / checkpoint_name(1) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in state.items() if key not in (name, "sha256")}))
    with pytest.raises(ValueError, match=f"state.json without the key `{name}`"):
        step_once(1).load(path.parent)


def test_the_averaged_weights_are_lent_and_given_back():
    state = step_once(0)
    state.ema.step(state.trained.values())
    parameter = state.trained["weight"]
    last, average = parameter.detach().clone(), state.ema.shadow_params[0].clone()
    assert not torch.equal(last, average)
    with pytest.raises(ZeroDivisionError), state.averaged():
        assert state.module.weight is parameter and torch.equal(parameter, average)
        1 / 0  # noqa: B018
    assert torch.equal(parameter, last) and torch.equal(state.ema.shadow_params[0], average)


def test_without_an_average_the_last_weights_stay():
    state = step_once(0)
    state.ema, last = None, state.trained["weight"].detach().clone()
    with state.averaged():
        assert torch.equal(state.trained["weight"], last)
