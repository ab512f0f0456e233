import pytest
import torch

from training.devices import check_device
from training.hub import load_pipeline


def test_a_device_of_this_machine_is_given_back():
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "meta", "", "hpu", "cuda:99"])
def test_others_are_refused_in_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=rf"^`device` must be one of this machine, got '{name}': [^\n]+$"):
        check_device(name)
    with pytest.raises(ValueError, match="`device` must be one of this machine"):
        load_pipeline(str(tmp_path), name)
