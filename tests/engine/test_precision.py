"""Frozen modules held in half precision or on the CPU, and restored."""

import pytest
import torch
from accelerate import Accelerator

from tests.tiny_components import get_dummy_components
from training.engine.precision import held_in, held_on_cpu, weight_dtype


@pytest.mark.parametrize(
    "mixed_precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16), (None, torch.float32)]
)
def test_the_dtype_follows_the_run(mixed_precision, dtype):
    assert weight_dtype(Accelerator(cpu=True, mixed_precision=mixed_precision)) == dtype


def test_afterwards_the_weights_are_their_own_not_rounded_ones():
    vae = get_dummy_components()["vae"].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of memory"), held_in(torch.bfloat16, [vae]):
        assert {tensor.dtype for tensor in vae.state_dict().values()} == {torch.bfloat16}
        raise RuntimeError("out of memory")  # the body may fail
    after = vae.state_dict()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in before.values())


def test_what_trains_is_refused():
    unet = get_dummy_components()["unet"]
    with pytest.raises(ValueError, match="`modules` must be frozen, got a UNet2DConditionModel that trains conv_in"):
        with held_in(torch.bfloat16, [unet]):
            pass
    assert unet.dtype == torch.float32


def test_what_waits_on_the_cpu_comes_back_to_its_device(monkeypatch):
    """Weights on `meta` stand in for those on a GPU; the test looks only at the moves."""
    vae = get_dummy_components()["vae"]
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 2)
    moves = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, place: moves.append((module, str(place))))
    with pytest.raises(RuntimeError, match="out of memory"), held_on_cpu([vae, layer]):
        assert moves == [(vae, "cpu"), (layer, "cpu")]
        raise RuntimeError("out of memory")  # the body may fail
    assert moves[2:] == [(vae, "cpu"), (layer, "meta")]
