"""Devices: those of this machine are accepted, others refused in one line."""

import pytest
import torch

from training.engine import devices
from training.engine.devices import check_bitsandbytes, check_device
from training.hub.repositories import load_pipeline


def test_a_device_of_this_machine_is_given_back():
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "meta", "", "hpu", "cuda:99"])
def test_others_are_refused_in_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=rf"^`device` must be one of this machine, got '{name}': [^\n]+$"):
        check_device(name)
    with pytest.raises(ValueError, match="`device` must be one of this machine"):
        load_pipeline(str(tmp_path), name)


@pytest.mark.parametrize(
    "device, is_installed, message",
    [
        ("cpu", False, "got cpu; bitsandbytes is not installed"),
        ("cuda:1", False, "got cuda; bitsandbytes is not installed"),
        ("cpu", True, "got cpu; bitsandbytes is installed"),
    ],
)
def test_bitsandbytes_must_be_installed_and_the_device_be_cuda(device, is_installed, message, monkeypatch):
    monkeypatch.setattr(devices, "is_bnb_available", lambda: is_installed)
    with pytest.raises(ValueError, match=f"`quantize_base` must go with CUDA and bitsandbytes, {message}"):
        check_bitsandbytes("quantize_base", device)
    monkeypatch.setattr(devices, "is_bnb_available", lambda: True)
    check_bitsandbytes("quantize_base", "cuda:1")
